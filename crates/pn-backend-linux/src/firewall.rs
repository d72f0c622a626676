//! The packet filters of our namespaces, by `nft`: rules that never change, and sets that hold what does. Each change is one
//! transaction.

use core::fmt::Write as _;
use core::net::{IpAddr, Ipv4Addr};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Seek as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use ipnet::IpNet;
use netlink_packet_core::{DecodeError, NetlinkDeserializable, NetlinkHeader, NetlinkSerializable};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::SockProtocol;
use pn_core::{MacAddr, Vni};
use serde_json::Value;

use crate::kernel::{Firewall, LinkName, Place};
use crate::netlink::Netlink;

/// The rules of a network's namespace.
const NETWORK: &str = include_str!("firewall/network.nft");

/// The rules of the transport namespace.
const TRANSPORT: &str = include_str!("firewall/transport.nft");

/// What our tables are called.
const TABLE: &str = "private_network";

/// A member of a set of ours.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    family: &'static str,
    set: &'static str,
    /// As `nft` reads it, which is also what its JSON holds with " . " between the parts.
    value: String,
}

/// The sets of both kinds of namespace, with the family of their table.
const SETS: [(&str, &str); 14] = [
    ("bridge", "sources"),
    ("bridge", "sources6"),
    ("bridge", "arp_sources"),
    ("bridge", "nd_addresses"),
    ("bridge", "nd_answers"),
    ("bridge", "destinations"),
    ("bridge", "destinations6"),
    ("bridge", "prefixes6"),
    ("bridge", "resolver"),
    ("inet", "resolver"),
    ("inet", "senders4"),
    ("inet", "senders46"),
    ("inet", "senders64"),
    ("inet", "senders6"),
];

impl Element {
    const fn new(family: &'static str, set: &'static str, value: String) -> Self {
        Self { family, set, value }
    }

    /// Where a container may send from: the element that says it is here.
    pub(crate) fn source(address: Ipv4Addr, mac: MacAddr) -> Self {
        Self::new("bridge", "sources", format!("{} . {mac} . {address}", LinkName::Port(address)))
    }

    /// All that says that a container is here.
    pub(crate) fn container(address: Ipv4Addr, mac: MacAddr) -> [Self; 3] {
        let port = LinkName::Port(address);
        [
            Self::source(address, mac),
            Self::new("bridge", "arp_sources", format!("{port} . {mac} . {mac} . {address}")),
            Self::new("bridge", "destinations", format!("{port} . {mac} . {address}")),
        ]
    }

    /// The same for its IPv6 address.
    pub(crate) fn container6(address: Ipv4Addr, mac: MacAddr, address6: IpAddr) -> [Self; 4] {
        let (port, low, number) = (LinkName::Port(address), address.to_bits(), number(mac));
        [
            Self::new("bridge", "sources6", format!("{port} . {mac} . {address6}")),
            Self::new("bridge", "nd_addresses", format!("{mac} . {number}")),
            Self::new("bridge", "nd_answers", format!("{port} . {mac} . {address6} . {low}")),
            Self::new("bridge", "destinations6", format!("{port} . {mac} . {address6}")),
        ]
    }

    /// Where the network's IPv6 addresses begin.
    pub(crate) fn prefix6(prefix: IpNet) -> Self {
        Self::new("bridge", "prefixes6", prefix.to_string())
    }

    /// Where the network's resolver is.
    pub(crate) fn resolver(address: Ipv4Addr) -> [Self; 2] {
        ["bridge", "inet"].map(|family| Self::new(family, "resolver", address.to_string()))
    }

    /// A container on another node, which may send from there: by IPv4, and by IPv6.
    pub(crate) fn sender(via: IpAddr, vni: Vni, address: Ipv4Addr, mac: MacAddr, is_ipv6: bool) -> Self {
        let set = match (via.is_ipv4(), is_ipv6) {
            (true, false) => "senders4",
            (true, true) => "senders46",
            (false, false) => "senders64",
            (false, true) => "senders6",
        };
        Self::new("inet", set, format!("{via} . {vni} . {} . {}", number(mac), address.to_bits()))
    }
}

/// Returns an address as `nft` writes a number of 48 bits.
fn number(mac: MacAddr) -> u64 {
    mac.octets().iter().fold(0, |number, octet| number << 8 | u64::from(*octet))
}

/// Chains and rules as `nft` lists them, by family, without what changes by itself.
type Rules = BTreeMap<String, Vec<Value>>;

/// Programs the filters of namespaces. It works in the namespace of the calling thread.
#[derive(Debug)]
pub(crate) struct Nft {
    program: Program,
    network: Rules,
    transport: Rules,
}

impl Nft {
    /// Loads every rule into the namespace of the calling thread, which must be one to be thrown away, and learns how this
    /// `nft` lists them: so rules are known to work before anything depends on them.
    pub(crate) fn probe(program: PathBuf) -> io::Result<Self> {
        let program = Program(program);
        let learn = |place| {
            program.run(&["-f", "-"], &replacement(place, &BTreeSet::new()))?;
            program.list(families(place)).map(|(rules, _)| rules)
        };
        let transport = learn(Place::Transport)?;
        let network = learn(NOWHERE)?;
        Ok(Self { program, network, transport })
    }

    /// Reads the filter of the namespace that the calling thread is in.
    pub(crate) fn observe(&self, place: Place) -> io::Result<Firewall> {
        let (rules, elements) = self.program.list(families(place))?;
        let expected = if place == Place::Transport { &self.transport } else { &self.network };
        Ok(Firewall { is_intact: rules == *expected, elements })
    }

    /// Begins to make the filter one of ours with these elements, whatever it was.
    pub(crate) fn replace(&self, place: Place, elements: &BTreeSet<Element>) -> io::Result<Running> {
        self.program.start(&["-f", "-"], &replacement(place, elements))
    }

    /// Begins to change elements.
    pub(crate) fn change(&self, remove: &[Element], add: &[Element]) -> io::Result<Running> {
        let mut text = String::new();
        write_elements("delete", remove, &mut text);
        write_elements("add", add, &mut text);
        self.program.start(&["-f", "-"], &text)
    }

    /// Reads how often each counter of the namespace counted.
    pub(crate) fn counters(&self) -> io::Result<BTreeMap<String, u64>> {
        let listed: Value = serde_json::from_str(&self.program.run(&["-j", "list", "counters"], "")?)?;
        let objects = listed.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let mut counts = BTreeMap::new();
        for counter in objects.iter().filter_map(|object| object.get("counter")) {
            let text = |key| counter.get(key).and_then(Value::as_str).unwrap_or_default();
            if text("table") == TABLE {
                let packets = counter.get("packets").and_then(Value::as_u64).unwrap_or_default();
                *counts.entry(text("name").to_owned()).or_default() += packets;
            }
        }
        Ok(counts)
    }
}

/// Any network's place, where the rules are those of all.
const NOWHERE: Place = Place::Network(pn_core::NetworkId::from_u128(0));

/// Returns the families in which a place has a table of ours. One of the name in another family is somebody else's, and allows
/// nothing that ours drop.
fn families(place: Place) -> &'static [&'static str] {
    if place == Place::Transport { &["inet"] } else { &["bridge", "inet"] }
}

/// Returns the transaction that puts our tables in the place of what is there.
fn replacement(place: Place, elements: &BTreeSet<Element>) -> String {
    let mut text = String::new();
    for family in families(place) {
        // Deleting one that is not there fails, so it is added before.
        writeln!(text, "add table {family} {TABLE}\ndelete table {family} {TABLE}").expect("a string takes everything");
    }
    text.push_str(if place == Place::Transport { TRANSPORT } else { NETWORK });
    let elements: Vec<Element> = elements.iter().cloned().collect();
    write_elements("add", &elements, &mut text);
    text
}

fn write_elements(verb: &str, elements: &[Element], text: &mut String) {
    for (family, set) in SETS {
        let values = elements.iter().filter(|element| (element.family, element.set) == (family, set));
        let values: Vec<&str> = values.map(|element| &*element.value).collect();
        if !values.is_empty() {
            writeln!(text, "{verb} element {family} {TABLE} {set} {{ {} }}", values.join(", "))
                .expect("a string takes everything");
        }
    }
}

/// The program.
#[derive(Debug)]
struct Program(PathBuf);

impl Program {
    /// Lists our tables, which are of these families.
    fn list(&self, families: &[&str]) -> io::Result<(Rules, BTreeSet<Element>)> {
        let listed = self.run(&["-j", "list", "ruleset"], "")?;
        let listed: Value = serde_json::from_str(&listed)?;
        let objects = listed.get("nftables").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        let (mut rules, mut elements) = (Rules::new(), BTreeSet::new());
        for object in objects.iter().filter_map(Value::as_object) {
            let Some((kind, object)) = object.iter().next() else {
                continue;
            };
            let text = |key| object.get(key).and_then(Value::as_str).unwrap_or_default();
            let is_table = kind == "table" && text("name") == TABLE;
            if !is_table && text("table") != TABLE {
                continue;
            }
            let family = text("family");
            if !families.contains(&family) {
                continue;
            }
            if let Some((family, set)) = SETS.iter().find(|of| kind == "set" && **of == (family, text("name"))) {
                let members = object.get("elem").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
                elements.extend(members.iter().map(|member| Element::new(family, set, element(member))));
            }
            let mut object = object.as_object().cloned().unwrap_or_default();
            for changing in ["handle", "elem", "packets", "bytes"] {
                object.remove(changing);
            }
            rules.entry(family.to_owned()).or_default().push(Value::from_iter([(kind.clone(), Value::Object(object))]));
        }
        Ok((rules, elements))
    }

    /// Runs `nft` in the namespace of the calling thread.
    fn run(&self, arguments: &[&str], input: &str) -> io::Result<String> {
        self.start(arguments, input)?.finish()
    }

    /// Starts `nft` in the namespace of the calling thread, where it stays. The standard library does so without forking this
    /// process.
    fn start(&self, arguments: &[&str], input: &str) -> io::Result<Running> {
        // A file, unlike a pipe, takes everything before anybody reads it.
        let mut stdin = File::from(memfd_create("nft", MFdFlags::MFD_CLOEXEC)?);
        stdin.write_all(input.as_bytes())?;
        stdin.rewind()?;
        let mut command = Command::new(&self.0);
        command.args(arguments).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| {
            let explained = "nft cannot be run: install the package nftables, and have it in PATH";
            io::Error::new(error.kind(), format!("{explained} ({error})"))
        })?;
        Ok(Running(child))
    }
}

/// A transaction that was begun.
#[derive(Debug)]
pub(crate) struct Running(Child);

impl Running {
    /// Waits for its end, and returns what was said.
    pub(crate) fn finish(self) -> io::Result<String> {
        let output = self.0.wait_with_output()?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("nft refused: {}", said.lines().next().unwrap_or_default())));
        }
        String::from_utf8(output.stdout).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }
}

/// Returns a member of a set as it is written.
fn element(member: &Value) -> String {
    if let Some(parts) = member.get("concat").and_then(Value::as_array) {
        return parts.iter().map(element).collect::<Vec<_>>().join(" . ");
    }
    if let Some(prefix) = member.get("prefix") {
        let part = |key| prefix.get(key).map(element).unwrap_or_default();
        return format!("{}/{}", part("addr"), part("len"));
    }
    member.as_str().map_or_else(|| member.to_string(), ToOwned::to_owned)
}

/// Reads the number that the kernel gives to each state of a namespace's rules: as long as it is the same, nothing was changed
/// by anybody (`NFT_MSG_GETGEN`).
pub(crate) fn generation() -> io::Result<u32> {
    let reply = Netlink::open(SockProtocol::NetlinkNetFilter)?.get(GenerationMessage { number: None })?;
    reply.number.ok_or_else(|| io::ErrorKind::InvalidData.into())
}

struct GenerationMessage {
    number: Option<u32>,
}

/// `NFNL_SUBSYS_NFTABLES`, and the two messages of it.
const SUBSYSTEM: u16 = 10 << 8;
const GET_GENERATION: u16 = SUBSYSTEM | 16;

/// `NFTA_GEN_ID`, a number of 32 bits in network order: its length and kind.
const GENERATION_ID: [u8; 4] = [8, 0, 1, 0];

impl NetlinkSerializable for GenerationMessage {
    fn message_type(&self) -> u16 {
        GET_GENERATION
    }

    fn buffer_len(&self) -> usize {
        4
    }

    fn serialize(&self, buffer: &mut [u8]) {
        // `struct nfgenmsg`: any family, version 0, no resource.
        buffer.fill(0);
    }
}

impl NetlinkDeserializable for GenerationMessage {
    type Error = DecodeError;

    fn deserialize(_: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        let attribute = payload.get(4..12).and_then(|attribute| attribute.strip_prefix(&GENERATION_ID));
        let number = attribute.and_then(|octets| octets.try_into().ok()).map(u32::from_be_bytes);
        Ok(Self { number })
    }
}
