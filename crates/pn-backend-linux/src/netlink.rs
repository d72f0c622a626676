//! Netlink sockets: changes in batches, and dumps.
#![expect(clippy::wildcard_enum_match_arm, reason = "replies hold more than is waited for")]

use std::cell::RefCell;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable,
};
use nix::sys::socket::{self, AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType};

/// One socket, used for one thing at a time. It stays in the namespace where it was opened.
#[derive(Debug)]
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

thread_local! {
    /// Where every socket of the thread receives, one at a time: there are hundreds, for as long as an observation takes.
    static BUFFER: RefCell<Box<[u8]>> = RefCell::new(vec![0; RECEIVE_BUFFER].into_boxed_slice());
}

#[cfg(test)]
thread_local! {
    /// How often this thread sent something.
    pub(crate) static SENT: std::cell::Cell<usize> = const { std::cell::Cell::new(0) };
}

/// Messages that are sent at a time. All may fail, and the errors have to fit into the receive buffer.
const BATCH: usize = 64;

/// What one call receives at most; the kernel fills no more than 32 KiB.
const RECEIVE_BUFFER: usize = 1 << 16;

/// A dump was disturbed by a change and may be inconsistent (`NLM_F_DUMP_INTR`).
const INTERRUPTED: u16 = 0x10;

/// How often a dump that is disturbed is begun again.
const ATTEMPTS: usize = 8;

impl Netlink {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open(protocol: SockProtocol) -> io::Result<Self> {
        let socket = socket::socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for changes, in order, and returns what became of each. One that fails does not stop the others.
    pub(crate) fn change<T>(&mut self, requests: Vec<(T, u16)>) -> Vec<io::Result<()>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut results = Vec::with_capacity(requests.len());
        let mut requests = requests.into_iter().peekable();
        while requests.peek().is_some() {
            let first = self.sequence.wrapping_add(1);
            let (mut octets, mut count) = (Vec::new(), 0);
            for (request, flags) in requests.by_ref().take(BATCH) {
                // Each is acknowledged, so that nothing is left over from one batch to the next.
                self.append(request, flags | NLM_F_ACK, &mut octets);
                count += 1;
            }
            let mut batch: Vec<io::Result<()>> = (0..count).map(|_| Ok(())).collect();
            let outcome = self.send(&octets).and_then(|()| self.acknowledgements::<T>(first, &mut batch));
            match outcome {
                Ok(()) => results.extend(batch),
                Err(error) => results.extend(batch.iter().map(|_| Err(same(&error)))),
            }
        }
        results
    }

    /// Asks for all objects of a kind.
    pub(crate) fn dump<T>(&mut self, request: impl Fn() -> T) -> io::Result<Vec<T>>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        for _ in 0..ATTEMPTS {
            let mut octets = Vec::new();
            self.append(request(), NLM_F_DUMP, &mut octets);
            self.send(&octets)?;
            if let Some(found) = self.collect()? {
                return Ok(found);
            }
        }
        Err(io::Error::new(io::ErrorKind::Interrupted, "the objects kept changing while they were listed"))
    }

    /// Asks for one object.
    pub(crate) fn get<T>(&mut self, request: T) -> io::Result<T>
    where
        T: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut octets = Vec::new();
        self.append(request, 0, &mut octets);
        self.send(&octets)?;
        let mut found = None;
        while found.is_none() {
            self.receive(|_, payload| match payload {
                NetlinkPayload::InnerMessage(message) => {
                    found = Some(Ok(message));
                    true
                }
                NetlinkPayload::Error(error) => {
                    found = Some(Err(error.to_io()));
                    true
                }
                _ => false,
            })?;
        }
        found.unwrap_or_else(|| Err(io::ErrorKind::UnexpectedEof.into()))
    }

    fn append<T>(&mut self, request: T, flags: u16, octets: &mut Vec<u8>)
    where
        T: NetlinkSerializable,
    {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
        message.finalize();
        let start = octets.len();
        octets.resize(start + message.buffer_len().next_multiple_of(4), 0);
        message.serialize(&mut octets[start..]);
    }

    fn send(&self, octets: &[u8]) -> io::Result<()> {
        #[cfg(test)]
        SENT.set(SENT.get() + 1);
        socket::send(self.socket.as_raw_fd(), octets, MsgFlags::empty())?;
        Ok(())
    }

    fn acknowledgements<T: NetlinkDeserializable>(
        &mut self,
        first: u32,
        batch: &mut [io::Result<()>],
    ) -> io::Result<()> {
        let mut waiting = batch.len();
        while waiting > 0 {
            self.receive::<T>(|header, payload| {
                let at = header.sequence_number.wrapping_sub(first) as usize;
                if let (NetlinkPayload::Error(error), Some(result)) = (payload, batch.get_mut(at)) {
                    waiting = waiting.saturating_sub(1);
                    if error.code.is_some() {
                        *result = Err(error.to_io());
                    }
                }
                false
            })?;
        }
        Ok(())
    }

    fn collect<T: NetlinkDeserializable>(&mut self) -> io::Result<Option<Vec<T>>> {
        let (mut found, mut end, mut disturbed) = (Vec::new(), None, false);
        while end.is_none() {
            self.receive(|header, payload| {
                disturbed |= header.flags & INTERRUPTED != 0;
                match payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => end = Some(Ok(())),
                    NetlinkPayload::Error(error) => end = Some(Err(error.to_io())),
                    _ => {}
                }
                false
            })?;
        }
        end.unwrap_or(Ok(()))?;
        Ok((!disturbed).then_some(found))
    }

    /// Receives some messages and hands each to `take`, until it says that this was the last.
    fn receive<T: NetlinkDeserializable>(
        &mut self,
        mut take: impl FnMut(NetlinkHeader, NetlinkPayload<T>) -> bool,
    ) -> io::Result<()> {
        BUFFER.with_borrow_mut(|buffer| {
            let len = socket::recv(self.socket.as_raw_fd(), buffer, MsgFlags::empty())?;
            let mut rest = buffer.get(..len).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<T>::deserialize(rest).map_err(|error| {
                    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's reply is not understood: {error}"))
                })?;
                let len = (message.header.length as usize).next_multiple_of(4);
                rest = rest.get(len..).unwrap_or_default();
                let (header, payload) = message.into_parts();
                if take(header, payload) {
                    break;
                }
            }
            Ok(())
        })
    }
}

/// Returns an error once more.
fn same(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| io::Error::new(error.kind(), error.to_string()), io::Error::from_raw_os_error)
}
