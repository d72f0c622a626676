//! Names: whatever parses prints as the same labels, and prints so that it parses again.

#![no_main]

use libfuzzer_sys::fuzz_target;
use pn_core::{Formation, Name, NetworkDomain, Subnet};

fuzz_target!(|text: &str| {
    if let Ok(name) = text.parse::<Name>() {
        let printed = name.to_string();
        assert!(printed.eq_ignore_ascii_case(text.strip_suffix('.').unwrap_or(text)));
        assert_eq!(printed.parse::<Name>().as_ref(), Ok(&name));
    }
    if let Ok(domain) = text.parse::<NetworkDomain>() {
        assert_eq!(domain.to_string().parse::<NetworkDomain>().as_ref(), Ok(&domain));
    }
    if let Ok(formation) = text.parse::<Formation>() {
        assert_eq!(formation.to_string().parse::<Formation>().as_ref(), Ok(&formation));
    }
    if let Ok(subnet) = text.parse::<Subnet>() {
        assert_eq!(subnet.to_string().parse::<Subnet>().as_ref(), Ok(&subnet));
    }
});
