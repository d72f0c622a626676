//! Which VNIs are taken, which rest, and whose turn it is.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use pn_core::{Numbers, Record, Rest, Vni};

use super::Reader;
use crate::registry::RegistryError;
use crate::registry::names::Names;
use crate::{Key, Listing, StoreExt, layout};

impl Reader<'_> {
    /// Reads whose turn it is among the VNIs, which are taken, and those that have rested longest.
    pub(super) async fn vnis(&mut self, names: &Names) -> Result<(), RegistryError> {
        self.is_mixed = true;
        let store = &*self.registry.store;
        let settled = NonZeroUsize::new(16).expect("16 is not zero");
        let rests = store.list(&Listing::new(layout::resting_vnis()).limit(settled)).await?.entries;
        let mut keys: Vec<Key> = rests.iter().map(|entry| entry.key.clone()).collect();
        if let Some(network) = names.network {
            let (_, entry) = store.get_one(&layout::network(network)).await?;
            let resting = entry.map(|entry| String::from_utf8_lossy(&entry.value).parse::<Key>());
            keys.extend(resting.and_then(Result::ok).filter(|key| key.starts_with(&layout::resting_vnis())));
        }
        keys.sort();
        keys.dedup();
        let mut locators = BTreeMap::new();
        for entry in self.get(&keys).await?.into_iter().flatten() {
            let Some(Record::Rest(rest @ Rest::Vni { vni, network, .. })) = layout::record(&entry)? else { continue };
            self.records.push(Record::Rest(rest));
            locators.insert(layout::vni(vni.get()), None);
            locators.insert(layout::network(network), Some(entry.key.to_string()));
        }
        for record in &self.records {
            if let Record::Network(network) = record {
                locators.insert(layout::vni(network.vni.get()), None);
                locators.entry(layout::network(network.id)).or_insert(None);
            }
        }
        locators.insert(layout::next_vni(), None);
        let keys: Vec<Key> = locators.keys().cloned().collect();
        let entries = self.get(&keys).await?;
        let mut next = 1;
        for ((key, leads), entry) in locators.into_iter().zip(entries) {
            let text = entry.as_ref().map(|entry| String::from_utf8_lossy(&entry.value).into_owned());
            if leads.is_some() && leads != text {
                self.foreign.push(key.clone());
            }
            if key == layout::next_vni()
                && let Some(entry) = &entry
                && let Some(Record::Next(Numbers::Vnis, number)) = layout::record(entry)?
            {
                next = number;
                self.records.push(Record::Next(Numbers::Vnis, number));
            }
        }
        if names.takes_vni {
            let last = self.registry.region.policy.last_vni.get();
            if !self.reserve(next, last).await? {
                self.reserve(1, next).await?;
            }
        }
        Ok(())
    }

    /// Reads which VNIs are taken, from one on until one is not; `false` where all are.
    async fn reserve(&mut self, first: u32, last: u32) -> Result<bool, RegistryError> {
        let (prefix, mut expected) = (layout::vnis(), first);
        let mut listing = Listing::new(prefix.clone());
        if first > 1 {
            listing = listing.after(layout::vni(first - 1));
        }
        loop {
            let page = self.registry.store.list(&listing).await?;
            for entry in &page.entries {
                let number = entry.key.strip_prefix(&prefix).and_then(|hex| u32::from_str_radix(hex, 16).ok());
                if number != Some(expected) || expected > last {
                    return Ok(expected <= last);
                }
                self.reserved.extend(Vni::new(expected));
                expected += 1;
            }
            match page.entries.last() {
                Some(entry) if !page.is_last => listing = listing.after(entry.key.clone()),
                _ => return Ok(expected <= last),
            }
        }
    }
}
