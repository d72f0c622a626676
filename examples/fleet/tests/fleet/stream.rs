//! A connection that is watched.

use std::path::{Path, PathBuf};

use crate::machines::{Container, Running, wait_for};

/// A connection between two containers that carries numbered lines until it is looked at.
#[derive(Debug)]
pub(crate) struct Stream {
    _client: Running,
    _server: Running,
    received: PathBuf,
}

const LISTEN: &str = "
import socket, sys
listener = socket.create_server(('', 9000))
connection, _ = listener.accept()
with open(sys.argv[1], 'wb', 0) as received:
    while octets := connection.recv(65536):
        received.write(octets)
";

const SEND: &str = "
import itertools, socket, sys, time
while True:
    try:
        connection = socket.create_connection((sys.argv[1], 9000), 5)
        break
    except OSError:
        time.sleep(0.1)
connection.settimeout(None)
for n in itertools.count(1):
    connection.sendall(str(n).encode() + bytes([10]))
    time.sleep(0.005)
";

impl Stream {
    pub(crate) fn start(server: &Container, client: &Container, name: &str, dir: &Path) -> Self {
        let received = dir.join("received");
        let server = Running::start(server.command("python3").args(["-c", LISTEN]).arg(&received));
        let client = Running::start(client.command("python3").args(["-c", SEND, name]));
        let stream = Self { _client: client, _server: server, received };
        wait_for("the first lines", || match stream.lines().len() {
            0 => Err("nothing yet".to_owned()),
            _ => Ok(()),
        });
        stream
    }

    fn lines(&self) -> Vec<u64> {
        let text = std::fs::read_to_string(&self.received).unwrap_or_default();
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|line| line.parse().unwrap()).collect()
    }

    /// Checks that it still carries lines, and that none was lost.
    #[track_caller]
    pub(crate) fn assert_intact(&self) {
        let before = self.lines().len();
        wait_for("more lines", || match self.lines().len() {
            now if now > before + 10 => Ok(()),
            now => Err(format!("{before} and then {now}")),
        });
        let lines = self.lines();
        assert!(lines.iter().copied().eq(1..=lines.len() as u64), "a line is missing or out of order");
    }
}
