//! A reactor for verbs that speak with storageds.

use reactor::{ArenaConfig, UringConfig, UringDriver};

/// A ring with an arena of so many slots of each size.
///
/// # Errors
/// A sentence.
pub(crate) fn driver(slot_counts: [u32; 3]) -> Result<UringDriver, String> {
    let arena = ArenaConfig {
        slot_counts,
        huge_pages: false,
    };
    let config = UringConfig {
        arena,
        ..UringConfig::default()
    };
    UringDriver::new(config)
        .map_err(|e| format!("cannot start a reactor: {e}; see `ubsctl doctor --host-only`"))
}
