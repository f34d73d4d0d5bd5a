//! Scripts with exact effects.
