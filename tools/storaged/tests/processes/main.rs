//! storaged as a process, with a metad of one member.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    mod bad_input;
    mod client;
    mod clones;
    mod groups;
    mod growth;
    mod healing;
    mod lab;
    mod maintenance;
    mod restarts;
    mod rollback;
    mod snapshots;
}
