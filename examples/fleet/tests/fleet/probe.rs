//! What a container sees, asked in this process and so finely.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use crate::machines::{Container, succeed};

/// How long one probe may take.
const PATIENCE: Duration = Duration::from_millis(200);

/// The addresses that a name has, as `dig` in a container says.
#[track_caller]
pub(crate) fn dig(from: &Container, name: &str) -> BTreeSet<String> {
    let output = succeed(from.command("dig").args(["+short", "+tries=2", "+time=2", name, "A"]));
    output.lines().map(str::to_owned).collect()
}

/// The addresses that a name has, for who is in a container.
pub(crate) fn resolve(name: &str) -> Result<Vec<Ipv4Addr>, String> {
    let socket = UdpSocket::bind("0.0.0.0:0").map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    // Recursion desired, one question, of type A and class IN.
    let mut query = vec![0x70, 0x6e, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in name.split('.').filter(|label| !label.is_empty()) {
        query.push(u8::try_from(label.len()).unwrap());
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    socket.send_to(&query, "169.254.53.53:53").map_err(|error| error.to_string())?;
    let mut reply = [0; 4096];
    let length = socket.recv(&mut reply).map_err(|error| format!("no answer: {error}"))?;
    let reply = &reply[..length];
    if reply[3] & 15 != 0 {
        return Err(format!("{name}: rcode {}", reply[3] & 15));
    }
    // Each answer is a pointer to the question's name, and an address.
    let answers = reply[query.len()..].chunks_exact(16).take(usize::from(reply[7]));
    Ok(answers.map(|answer| Ipv4Addr::new(answer[12], answer[13], answer[14], answer[15])).collect())
}

/// The page that a name serves on a port, for who is in a container.
pub(crate) fn fetch(name: &str, port: u16) -> Result<String, String> {
    let address = *resolve(name)?.first().ok_or("no address")?;
    let connect = TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE);
    let mut stream = connect.map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").map_err(|error| error.to_string())?;
    let mut page = String::new();
    stream.read_to_string(&mut page).map_err(|error| error.to_string())?;
    page.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).ok_or(page)
}
