mod dull;
mod journal;
mod property;
mod verdicts;
