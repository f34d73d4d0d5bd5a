//! ubsctl as a process, against a metad of one member and daemons that are played.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    mod bad_input;
    mod doctor;
    mod hosts;
    mod lab;
    mod rollbacks;
    mod snapshots;
    mod volumes;
}
