use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const REST: Duration = Duration::from_secs(60);

fn at(seconds: u64) -> Timestamp {
    Timestamp::from_millis(seconds * 1000)
}

#[test]
fn n4_another_owner_waits_the_same_does_not() {
    let mut pool = Pool::new(2, REST, Reuse::Oldest);
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
fn n4_every_other_number_comes_before_one_comes_again() {
    let mut pool = Pool::new(3, REST, Reuse::InTurn);
    assert_eq!((pool.take(&'a', at(0)), pool.take(&'b', at(0))), (Ok(1), Ok(2)));
    pool.release(2, 'b', at(1));
    pool.release(1, 'a', at(2));
    assert_eq!(pool.take(&'c', at(1000)), Ok(3));
    assert_eq!(pool.take(&'d', at(1000)), Ok(1));
    assert_eq!(pool.take(&'e', at(1000)), Ok(2));
}

#[test]
fn n4_never_given_comes_before_rested_and_oldest_before_younger() {
    let mut pool = Pool::new(3, REST, Reuse::Oldest);
    assert_eq!((pool.take(&'a', at(0)), pool.take(&'b', at(0))), (Ok(1), Ok(2)));
    pool.release(2, 'b', at(1));
    pool.release(1, 'a', at(2));
    assert_eq!(pool.take(&'c', at(1000)), Ok(3));
    assert_eq!(pool.take(&'d', at(1000)), Ok(2));
    assert_eq!(pool.take(&'e', at(1000)), Ok(1));
}

#[test]
fn n4_what_has_rested_is_forgotten_a_few_at_a_time() {
    let mut pool = Pool::new(100, REST, Reuse::InTurn);
    (0..50).for_each(|owner| assert_eq!(pool.take(&owner, at(0)), Ok(owner + 1)));
    (0..50u32).for_each(|owner| pool.release(owner + 1, owner, at(1)));
    assert_eq!(pool.rests().count(), 50);
    assert_eq!(pool.take(&7, at(61)), Ok(51), "its own has rested, so it is nobody's");
    assert_eq!(pool.rests().count(), 50 - Pool::<u32>::SETTLED);
}

#[test]
fn what_is_vacated_was_never_given() {
    let mut pool = Pool::new(2, REST, Reuse::Oldest);
    assert_eq!(pool.take(&'a', at(0)), Ok(1));
    pool.vacate(1);
    pool.vacate(1);
    assert_eq!((pool.used(), pool.rests().count()), (0, 0));
    assert_eq!((pool.take(&'b', at(0)), pool.take(&'c', at(0))), (Ok(2), Ok(1)));
    assert_eq!((pool.used(), pool.take(&'d', at(0))), (2, Err(Exhausted::InUse)));
}

#[test]
fn n3_release_is_idempotent() {
    let mut pool = Pool::new(2, REST, Reuse::Oldest);
    assert_eq!(pool.take(&'a', at(0)), Ok(1));
    for number in [0, 1, 1, 2, 3, u32::MAX] {
        pool.release(number, 'a', at(1));
    }
    assert_eq!(pool.used(), 0);
    assert_eq!(pool.take(&'a', at(1)), Ok(1));
    assert_eq!(pool.take(&'b', at(1)), Ok(2));
    assert_eq!(pool.take(&'c', at(1000)), Err(Exhausted::InUse));
}

#[test]
fn n1_giving_one_of_1022_numbers_back_frees_that_one() {
    let mut pool = Pool::new(1022, REST, Reuse::Oldest);
    (1..=1022).for_each(|number| assert_eq!(pool.take(&number, at(0)), Ok(number)));
    for number in 1..=1022 {
        pool.release(number, number, at(1));
        assert_eq!(pool.used(), 1022 - number);
        assert_eq!(pool.take(&2000, at(1)), Err(Exhausted::Resting { until: at(61) }));
    }
    (1..=1022).rev().for_each(|number| assert_eq!(pool.take(&number, at(2)), Ok(number)));
}

/// The naive model: every number's whole state, searched from end to end.
#[derive(Default)]
struct Model {
    /// Number → who has it, or who gave it back and when.
    numbers: BTreeMap<u32, Result<u8, (Timestamp, u8)>>,
    /// The number that was given last.
    last: u32,
}

impl Model {
    fn take(&mut self, reuse: Reuse, capacity: u32, owner: u8, now: Timestamp) -> Result<u32, Exhausted> {
        let free = |(number, state): (&u32, &Result<u8, _>)| state.err().map(|(since, by)| (since, *number, by));
        let free: Vec<(Timestamp, u32, u8)> = self.numbers.iter().filter_map(free).collect();
        let rests = |since: Timestamp| now < since.after(REST);
        let own = free.iter().filter(|(since, _, by)| *by == owner && rests(*since)).max();
        let is_there = |number: &u32| match self.numbers.get(number) {
            None => true,
            Some(Ok(_)) => false,
            Some(Err((since, _))) => reuse == Reuse::InTurn && !rests(*since),
        };
        let next = (self.last + 1..=capacity).chain(1..=self.last).find(is_there);
        let oldest = free.iter().filter(|(since, ..)| !rests(*since)).min().map(|(_, number, _)| *number);
        let Some(number) = own.map(|(_, number, _)| *number).or(next).or(oldest) else {
            let first = free.iter().map(|(since, ..)| since.after(REST)).min();
            return Err(first.map_or(Exhausted::InUse, |until| Exhausted::Resting { until }));
        };
        if own.is_none() && next.is_some() {
            self.last = number;
        }
        self.numbers.insert(number, Ok(owner));
        Ok(number)
    }

    fn release(&mut self, number: u32, now: Timestamp) {
        if let Some(state) = self.numbers.get_mut(&number)
            && let Ok(owner) = *state
        {
            *state = Err((now, owner));
        }
    }
}

proptest! {
    /// One owner may hold several numbers here, as two incarnations of a slot do.
    #[test]
    fn pool_equals_the_model(
        reuse in prop::sample::select(vec![Reuse::Oldest, Reuse::InTurn]),
        capacity in 1u32..70,
        recorded in prop::collection::vec((0u32..75, 0u8..12), 0..20),
        steps in prop::collection::vec((0u8..12, 0u64..40, any::<prop::sample::Index>(), any::<bool>()), 0..200),
    ) {
        let (mut pool, mut model, mut now) = (Pool::new(capacity, REST, reuse), Model::default(), Timestamp::ZERO);
        for (number, owner) in recorded {
            let is_free = (1..=capacity).contains(&number) && !model.numbers.contains_key(&number);
            prop_assert_eq!(pool.occupy(number), is_free);
            if is_free {
                model.numbers.insert(number, Ok(owner));
            }
        }
        for (owner, seconds, pick, take) in steps {
            now = now.after(Duration::from_secs(seconds));
            if take {
                prop_assert_eq!(pool.take(&owner, now), model.take(reuse, capacity, owner, now));
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
