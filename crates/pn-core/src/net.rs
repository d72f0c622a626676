//! Values that data planes exchange: VNIs, MAC addresses, public keys, interface names.

use core::fmt;
use core::net::Ipv4Addr;
use core::num::NonZeroU32;
use core::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

/// A value of this module that is out of range or malformed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NetError {
    /// The number is no VXLAN network identifier.
    #[error("VNI {value} is out of range: it must be from 1 to {max}", max = Vni::MAX)]
    Vni {
        /// The number that was given.
        value: u32,
    },
    /// The text is not six hexadecimal octets with colons between.
    #[error("{value:?} is not a MAC address such as 02:00:0a:f0:00:01")]
    Mac {
        /// The text that was given.
        value: String,
    },
    /// The text is not 32 octets in base64.
    #[error("{value:?} is not a public key: 32 octets in base64, 44 characters, are expected")]
    PublicKey {
        /// The text that was given.
        value: String,
    },
    /// The text cannot name a network interface.
    #[error(
        "{value:?} is not an interface name: 1 to 15 octets without space, slash or control character, and neither \".\" nor \"..\""
    )]
    InterfaceName {
        /// The text that was given.
        value: String,
    },
}

/// A VXLAN network identifier (RFC 7348 §5): 24 bits, never 0 here.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Vni(NonZeroU32);

impl Vni {
    /// The largest identifier that 24 bits hold.
    pub const MAX: u32 = 0x00ff_ffff;

    /// Makes an identifier; `None` for 0 and for more than 24 bits.
    #[must_use]
    pub const fn new(value: u32) -> Option<Self> {
        match NonZeroU32::new(value) {
            Some(value) if value.get() <= Self::MAX => Some(Self(value)),
            _ => None,
        }
    }

    /// Returns the number.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

impl TryFrom<u32> for Vni {
    type Error = NetError;

    fn try_from(value: u32) -> Result<Self, NetError> {
        Self::new(value).ok_or(NetError::Vni { value })
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// Makes an address from its octets.
    #[must_use]
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// Derives the address of a container's interface from its IPv4 address: `02:00:` and the four octets, locally
    /// administered and unicast. Who gets an address gets its MAC with it, so ARP caches stay true.
    #[must_use]
    pub const fn of_ipv4(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x00, a, b, c, d])
    }

    /// Returns the octets.
    #[must_use]
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let octet = |part: &str| {
            let digits = part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit());
            digits.then(|| u8::from_str_radix(part, 16).ok()).flatten()
        };
        let octets: Option<Vec<u8>> = text.split(':').map(octet).collect();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| NetError::Mac { value: text.to_owned() })
    }
}

/// A WireGuard public key (Curve25519), printed in base64 as `wg` prints it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// Makes a key from its octets.
    #[must_use]
    pub const fn new(octets: [u8; 32]) -> Self {
        Self(octets)
    }

    /// Returns the octets.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&STANDARD.encode(self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let octets = STANDARD.decode(text).ok();
        octets
            .and_then(|octets| octets.try_into().ok())
            .map(Self)
            .ok_or_else(|| NetError::PublicKey { value: text.to_owned() })
    }
}

/// A network interface's name: at most 15 octets (`IFNAMSIZ` less the final zero).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InterfaceName {
    len: u8,
    octets: [u8; Self::MAX_LEN],
}

impl InterfaceName {
    /// The longest a name can be, in octets.
    pub const MAX_LEN: usize = 15;

    /// Returns the name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        core::str::from_utf8(&self.octets[..usize::from(self.len)]).expect("only ASCII gets in")
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self.as_str(), f)
    }
}

impl FromStr for InterfaceName {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Self, NetError> {
        let allowed = |octet: u8| octet.is_ascii_graphic() && octet != b'/' && octet != b':';
        if text.is_empty() || text.len() > Self::MAX_LEN || !text.bytes().all(allowed) || text == "." || text == ".." {
            return Err(NetError::InterfaceName { value: text.to_owned() });
        }
        let mut octets = [0; Self::MAX_LEN];
        octets[..text.len()].copy_from_slice(text.as_bytes());
        Ok(Self { len: text.len() as u8, octets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn n8_a_vni_has_24_bits_and_is_not_zero() {
        assert_eq!(Vni::try_from(0), Err(NetError::Vni { value: 0 }));
        assert_eq!(Vni::try_from(1 << 24), Err(NetError::Vni { value: 1 << 24 }));
        assert_eq!(Vni::try_from(1).unwrap().get(), 1);
        assert_eq!(Vni::try_from(Vni::MAX).unwrap().to_string(), "16777215");
    }

    #[test]
    fn n7_a_mac_is_derived_from_the_address() {
        let mac = MacAddr::of_ipv4(Ipv4Addr::new(10, 240, 3, 254));
        assert_eq!(mac.to_string(), "02:00:0a:f0:03:fe");
        assert_eq!(mac.to_string().parse(), Ok(mac));
        assert_eq!(mac.octets()[0] & 0b11, 0b10, "locally administered and unicast");
        for text in
            ["", "02:00:0a:f0:03", "02:00:0a:f0:03:fe:00", "02:00:0a:f0:03:fg", "2:0:a:f0:3:fe", "+2:00:0a:f0:03:fe"]
        {
            assert_eq!(text.parse::<MacAddr>(), Err(NetError::Mac { value: text.to_owned() }));
        }
    }

    #[test]
    fn a_public_key_is_printed_as_wg_prints_it() {
        let text = "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw=";
        let key: PublicKey = text.parse().unwrap();
        assert_eq!(key.to_string(), text);
        for bad in ["", "HIgo9xNzJMWLKASShiTqIybxZ0U3wGLiUeJ1PKf8ykw", "AAAA", &text.replace('=', "A")] {
            assert_eq!(bad.parse::<PublicKey>(), Err(NetError::PublicKey { value: bad.to_owned() }));
        }
    }

    #[test]
    fn n10_an_interface_name_has_at_most_15_octets() {
        for text in ["pn0", "pn-0123456789ab"] {
            assert_eq!(text.parse::<InterfaceName>().unwrap().to_string(), text);
        }
        for text in ["", ".", "..", "a/b", "a b", "pn-0123456789abc", "é"] {
            assert!(text.parse::<InterfaceName>().is_err(), "{text}");
        }
    }
}
