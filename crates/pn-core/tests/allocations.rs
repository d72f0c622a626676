//! Names are formatted and parsed without a piece of the heap, which a count of every piece shows.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::error::Error;
use std::fmt::Write;
use std::hint::black_box;

use pn_core::{AppId, ContainerType, Name, NetworkId, Slot};

/// The system's allocator, which counts what each thread asks of it.
struct Counting;

thread_local! {
    static ASKED: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends is not counted any more.
    let _ = ASKED.try_with(|asked| asked.set(asked.get() + 1));
}

// SAFETY: everything is the system's allocator's answer to the same request.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `alloc`, which is this function's own.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`, and `System` gave out the piece.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps the contract of `realloc`, and `System` gave out the piece.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Returns how often the heap is asked while something is done.
fn asked<T>(work: impl FnOnce() -> T) -> (u64, T) {
    let before = ASKED.get();
    let done = work();
    (ASKED.get() - before, done)
}

/// Text in a place of its own.
struct Text {
    octets: [u8; Name::MAX_LEN + 1],
    len: usize,
}

impl Write for Text {
    fn write_str(&mut self, part: &str) -> std::fmt::Result {
        let end = self.len + part.len();
        self.octets.get_mut(self.len..end).ok_or(std::fmt::Error)?.copy_from_slice(part.as_bytes());
        self.len = end;
        Ok(())
    }
}

#[test]
fn names_format_and_parse_without_allocating() -> Result<(), Box<dyn Error>> {
    assert_eq!(asked(|| black_box(vec![1; 100])).0, 1, "a vector is counted");
    let (network, app) = (NetworkId::from_u128(u128::MAX), AppId::from_u128(1));
    let longest: ContainerType = "x".repeat(ContainerType::MAX_LEN).parse()?;
    for name in [
        Name::app(network, app),
        Name::of_type(network, app, ContainerType::web()),
        Name::of_type(network, app, longest),
        Name::container(network, &Slot::new(app, "my-app-backend".parse()?, 1)?),
        Name::container(network, &Slot::new(app, longest, u32::MAX)?),
    ] {
        let (plain, dotted, mut buffer) = (name.to_string(), format!("{name:#}"), [0; Name::MAX_LEN]);
        let (times, encoded) = asked(|| name.encode(&mut buffer));
        assert_eq!((times, encoded), (0, plain.as_str()));
        let mut text = Text { octets: [0; _], len: 0 };
        assert_eq!(asked(|| write!(text, "{name:#}")), (0, Ok(())), "{name}");
        assert_eq!(&text.octets[..text.len], dotted.as_bytes());
        for given in [&plain, &dotted, &plain.to_uppercase()] {
            let (times, parsed) = asked(|| given.parse::<Name>());
            assert_eq!((times, parsed?), (0, name), "{given}");
        }
    }
    Ok(())
}
