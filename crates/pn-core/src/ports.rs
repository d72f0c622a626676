//! The ports that an app declares, which DNS tells (SRV records).

use core::fmt;
use core::num::NonZeroU16;
use core::str::FromStr;

/// What a port is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// A port that the containers of a type listen on: `3000/tcp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Port {
    /// Its number.
    pub number: NonZeroU16,
    /// What it is of.
    pub protocol: Protocol,
}

/// The ports of a container type, in order and each once: `53/udp 3000/tcp`.
///
/// They are what the app says; no packet is held to them.
///
/// ```
/// use pn_core::Ports;
///
/// let ports: Ports = "3000/tcp 53/udp 53/tcp".parse()?;
/// assert_eq!(ports.to_string(), "53/tcp 53/udp 3000/tcp");
/// # Ok::<(), pn_core::PortsError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Ports(Box<[Port]>);

/// Why a text does not list [`Ports`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{item:?} is not a port: write 1 to 65535 without leading zeros, and /tcp or /udp, for example 3000/tcp")]
pub struct PortsError {
    /// The item that is wrong.
    pub item: String,
}

impl Ports {
    /// Returns the ports, in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Port> {
        self.0.iter().copied()
    }

    /// Returns whether there is none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether a port is among them.
    #[must_use]
    pub fn contains(&self, port: Port) -> bool {
        self.0.binary_search(&port).is_ok()
    }
}

impl FromIterator<Port> for Ports {
    fn from_iter<I: IntoIterator<Item = Port>>(ports: I) -> Self {
        let mut ports: Vec<Port> = ports.into_iter().collect();
        ports.sort_unstable();
        ports.dedup();
        Self(ports.into())
    }
}

impl FromStr for Port {
    type Err = PortsError;

    fn from_str(item: &str) -> Result<Self, PortsError> {
        let wrong = || PortsError { item: item.to_owned() };
        let (number, protocol) = item.split_once('/').ok_or_else(wrong)?;
        let protocol = match protocol {
            "tcp" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            _ => return Err(wrong()),
        };
        let canonical = number.bytes().all(|octet| octet.is_ascii_digit()) && !number.starts_with('0');
        let number = number.parse().ok().filter(|_| canonical).ok_or_else(wrong)?;
        Ok(Self { number, protocol })
    }
}

impl FromStr for Ports {
    type Err = PortsError;

    fn from_str(text: &str) -> Result<Self, PortsError> {
        text.split_ascii_whitespace().map(str::parse).collect()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", self.number)
    }
}

impl fmt::Display for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, port) in self.iter().enumerate() {
            write!(f, "{}{port}", if n == 0 { "" } else { " " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_parse_and_print() {
        for (text, printed) in [("", ""), (" 65535/udp\t1/tcp ", "1/tcp 65535/udp"), ("80/tcp 80/tcp", "80/tcp")] {
            assert_eq!(text.parse::<Ports>().unwrap().to_string(), printed);
        }
        for item in ["80", "/tcp", "0/tcp", "080/tcp", "+80/tcp", "65536/tcp", "80/sctp", "80/TCP", "80/tcp/udp"] {
            assert_eq!(format!("1/udp {item}").parse::<Ports>(), Err(PortsError { item: item.to_owned() }));
        }
    }
}
