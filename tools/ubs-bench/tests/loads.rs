//! Server and load as processes, over loopback.
#![forbid(unsafe_code)]

#[cfg(test)]
mod test {
    use serde_json::Value;
    use std::io::{BufRead, BufReader, Write};
    use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};

    const PROGRAM: &str = env!("CARGO_BIN_EXE_ubs-bench");
    const NQN: &str = "nqn.2026-01.io.ublkstor:storaged:ubs-bench";

    struct Server {
        child: Child,
        input: Option<ChildStdin>,
        output: BufReader<ChildStdout>,
        address: String,
    }

    impl Server {
        fn start(options: &[&str]) -> Self {
            let mut child = Command::new(PROGRAM)
                .args(["serve", "--size", "8M"])
                .args(options)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let input = child.stdin.take();
            let mut output = BufReader::new(child.stdout.take().unwrap());
            let mut line = String::new();
            output.read_line(&mut line).unwrap();
            let address = line.split(' ').nth(2).unwrap_or_default().to_owned();
            Self {
                child,
                input,
                output,
                address,
            }
        }

        fn commands(&mut self) -> u64 {
            writeln!(self.input.as_mut().unwrap(), "counters").unwrap();
            let mut line = String::new();
            self.output.read_line(&mut line).unwrap();
            serde_json::from_str::<Value>(&line).unwrap()["commands"]
                .as_u64()
                .unwrap()
        }

        fn load(&self, options: &[&str]) -> Output {
            Command::new(PROGRAM)
                .args(["target", &self.address, "--nqn", NQN, "--json"])
                .args(options)
                .output()
                .unwrap()
        }

        fn end(mut self) {
            drop(self.input.take());
            assert!(self.child.wait().unwrap().success());
        }
    }

    fn report(of: &Output) -> Value {
        let words = String::from_utf8_lossy(&of.stderr);
        assert!(of.status.success(), "{words}");
        serde_json::from_slice(&of.stdout).unwrap()
    }

    #[test]
    fn once_over_memory_is_every_place_once() {
        let mut server = Server::start(&["--backing", "ram"]);
        let options = ["--rw", "write", "--bs", "64k", "--iodepth", "4", "--once"];
        let seen = report(&server.load(&options));
        assert_eq!(seen["ios"], 128);
        assert_eq!(seen["write_us"]["count"], 128);
        assert_eq!(seen["read_us"], Value::Null);
        assert_eq!(server.commands(), 128);
        server.end();
    }

    #[test]
    fn a_store_serves_mixed_load_over_many_connections_and_stops_clean() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store");
        let path = path.to_str().unwrap();
        let server = Server::start(&["--backing", "store", "--path", path]);
        let mixed = ["--rw", "randrw", "--iodepth", "8", "--connections", "4"];
        let times = ["--runtime", "0.2", "--ramp-time", "0", "--hdgst", "--ddgst"];
        let seen = report(&server.load(&[&mixed[..], &times[..]].concat()));
        assert!(seen["read_us"]["count"].as_u64().unwrap() > 0);
        assert!(seen["write_us"]["count"].as_u64().unwrap() > 0);
        assert_eq!(
            (&seen["failed"], &seen["connections"]),
            (&0.into(), &4.into())
        );
        server.end();
        // Stopped clean: it opens again.
        Server::start(&["--backing", "store", "--path", path]).end();
    }

    #[test]
    fn more_in_flight_than_the_queue_takes_waits_for_room() {
        let server = Server::start(&["--backing", "ram"]);
        let options = ["--iodepth", "500", "--runtime", "0.2", "--ramp-time", "0"];
        let seen = report(&server.load(&options));
        assert!(seen["ios"].as_u64().unwrap() >= 500, "{seen}");
        server.end();
    }

    #[test]
    fn what_cannot_be_is_refused_with_a_sentence() {
        let server = Server::start(&["--backing", "ram"]);
        for (options, word) in [
            (
                &["--size", "9M"][..],
                "--size wants 2304 blocks, there are 2048",
            ),
            (&["--nsid", "7"], "there is no namespace 7"),
            (&["--peer-pid", "4194305"], "no process 4194305"),
        ] {
            let seen = server.load(options);
            let words = String::from_utf8_lossy(&seen.stderr);
            assert!(!seen.status.success() && words.contains(word), "{words}");
        }
        server.end();
        let nobody = Command::new(PROGRAM)
            .args(["target", "127.0.0.1:1", "--nqn", NQN])
            .output()
            .unwrap();
        assert!(!nobody.status.success());
    }
}
