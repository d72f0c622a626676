use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const REST: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

#[test]
fn n4_another_owner_waits_the_same_does_not() {
    let mut pool = Pool::new(2, REST);
    assert_eq!(pool.take(&'a', at(0)), Ok(1));
    assert_eq!(pool.take(&'b', at(0)), Ok(2));
    assert_eq!(pool.take(&'c', at(0)), Err(Exhausted::InUse));
    pool.release(1, 'a', at(10));
    assert_eq!(pool.take(&'c', at(10)), Err(Exhausted::Resting { until: at(70) }));
    assert_eq!(pool.take(&'c', at(69)), Err(Exhausted::Resting { until: at(70) }));
    assert_eq!(pool.take(&'a', at(11)), Ok(1), "its own at once");
    pool.release(1, 'a', at(20));
    assert_eq!(pool.take(&'c', at(80)), Ok(1));
    assert_eq!(pool.take(&'a', at(80)), Err(Exhausted::InUse), "what another has is gone");
}

#[test]
fn n4_never_used_comes_before_rested_and_oldest_before_younger() {
    let mut pool = Pool::new(3, REST);
    assert_eq!((pool.take(&'a', at(0)), pool.take(&'b', at(0))), (Ok(1), Ok(2)));
    pool.release(2, 'b', at(1));
    pool.release(1, 'a', at(2));
    assert_eq!(pool.take(&'c', at(1000)), Ok(3));
    assert_eq!(pool.take(&'d', at(1000)), Ok(2));
    assert_eq!(pool.take(&'e', at(1000)), Ok(1));
}

#[test]
fn n3_release_is_idempotent() {
    let mut pool = Pool::new(2, REST);
    assert_eq!(pool.take(&'a', at(0)), Ok(1));
    for number in [0, 1, 1, 2, 3, u32::MAX] {
        pool.release(number, 'a', at(1));
    }
    assert_eq!(pool.used(), 0);
    assert_eq!(pool.take(&'a', at(1)), Ok(1));
    assert_eq!(pool.take(&'b', at(1)), Ok(2));
    assert_eq!(pool.take(&'c', at(1000)), Err(Exhausted::InUse));
}

/// The naive model: every number's whole state, searched from end to end.
#[derive(Default)]
struct Model {
    /// Number → who has it, or who had it and when it was given back.
    numbers: BTreeMap<u32, Result<u8, (Timestamp, u8)>>,
    /// Owner → the number it gave back last, unless somebody took it since.
    last: BTreeMap<u8, u32>,
}

impl Model {
    fn take(&mut self, capacity: u32, owner: u8, now: Timestamp) -> Result<u32, Exhausted> {
        let free =
            |(number, state): (&u32, &Result<u8, (Timestamp, u8)>)| state.err().map(|(since, _)| (since, *number));
        let oldest = self.numbers.iter().filter_map(free).min();
        let own = self.last.get(&owner).copied();
        let number = match (own.or_else(|| (1..=capacity).find(|n| !self.numbers.contains_key(n))), oldest) {
            (Some(number), _) => number,
            (None, None) => return Err(Exhausted::InUse),
            (None, Some((since, _))) if now < since.after(REST) => {
                return Err(Exhausted::Resting { until: since.after(REST) });
            }
            (None, Some((_, number))) => number,
        };
        self.last.retain(|_, last| *last != number);
        self.numbers.insert(number, Ok(owner));
        Ok(number)
    }

    fn release(&mut self, number: u32, now: Timestamp) {
        if let Some(state) = self.numbers.get_mut(&number)
            && let Ok(owner) = *state
        {
            *state = Err((now, owner));
            self.last.insert(owner, number);
        }
    }
}

proptest! {
    /// One owner may hold several numbers here, as two incarnations of a slot do.
    #[test]
    fn pool_equals_the_model(
        capacity in 1u32..70,
        steps in prop::collection::vec((0u8..12, 0u64..40, any::<prop::sample::Index>(), any::<bool>()), 0..200),
    ) {
        let (mut pool, mut model, mut now) = (Pool::new(capacity, REST), Model::default(), Timestamp::ZERO);
        for (owner, seconds, pick, take) in steps {
            now = now.after(Duration::from_secs(seconds));
            if take {
                prop_assert_eq!(pool.take(&owner, now), model.take(capacity, owner, now));
            } else {
                let number = pick.index(capacity as usize + 2) as u32;
                let owner = model.numbers.get(&number).and_then(|state| state.ok()).unwrap_or(owner);
                pool.release(number, owner, now);
                model.release(number, now);
            }
            let used = model.numbers.values().filter(|state| state.is_ok()).count();
            prop_assert_eq!(pool.used() as usize, used);
        }
    }
}
