//! Which slices a server should hold, and which it was told to make or remove.

use crate::orders::{Order, SliceEnd};
use control::core::DesiredSlice;
use shardmap::generations::{FIRST_GENERATION, VolumeGenerations};
use shardmap::units::{Nsid, StoreId};
use std::collections::BTreeMap;
use store::{Parent, SliceSpec};

/// What metad is to be told of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Told {
    /// It is there, and reaches to so many blocks of the volume.
    Made(StoreId, Nsid, u64),
    /// It was there before, and what it had is lost.
    Blank(StoreId, Nsid),
    /// It is gone.
    Gone(StoreId, Nsid),
}

/// Compares what metad wants with what was done. Decides; asks and orders nothing by itself.
#[derive(Debug, Default)]
pub struct Wanted {
    /// Ids of the stores by their place; `None`: not open or not registered.
    ids: Vec<Option<StoreId>>,
    /// Size last ordered for a slice that is there, so that it is ordered again only to grow.
    made: BTreeMap<Nsid, u64>,
    /// Slices ordered and not yet answered.
    ordered: BTreeMap<Nsid, DesiredSlice>,
    /// Slices of clones that cannot be made before what they begin with is whole here.
    waiting: BTreeMap<Nsid, DesiredSlice>,
    /// Generations that metad had of a slice when it was looked at last.
    generations: BTreeMap<Nsid, VolumeGenerations>,
}

impl Wanted {
    /// metad knows the store at this place by this id.
    pub fn registered(&mut self, store_index: usize, id: StoreId) {
        if self.ids.len() <= store_index {
            self.ids.resize(store_index + 1, None);
        }
        self.ids[store_index] = Some(id);
    }

    /// What to order so that there is what metad wants.
    pub fn orders(&mut self, slices: Vec<DesiredSlice>) -> Vec<Order> {
        let mut orders = Vec::new();
        // What is still wanted is ordered again, and perhaps refused again.
        self.waiting.clear();
        for slice in slices {
            let drop = self.drop_order(&slice);
            orders.extend(self.order(slice));
            orders.extend(drop);
        }
        orders
    }

    /// Lets deleted generations go, if there may be some that the store has not been told of.
    fn drop_order(&mut self, slice: &DesiredSlice) -> Option<Order> {
        let nsid = slice.nsid;
        if slice.remove {
            self.generations.remove(&nsid);
            return None;
        }
        let generations = slice.generations.clone()?;
        let before = self.generations.insert(nsid, generations.clone());
        if !deletes_more(&before.unwrap_or_default(), &generations) {
            return None;
        }
        Some(Order::KeepGenerations { nsid, generations })
    }

    fn index_of(&self, slice: &DesiredSlice) -> Option<usize> {
        self.ids.iter().position(|id| *id == Some(slice.store))
    }

    fn order(&mut self, slice: DesiredSlice) -> Option<Order> {
        let Some(store_index) = self.index_of(&slice) else {
            tracing::warn!(store = %slice.store, nsid = %slice.nsid, "metad wants a slice on a store that is not open here");
            return None;
        };
        if self.ordered.contains_key(&slice.nsid) {
            return None;
        }
        let nsid = slice.nsid;
        let order = if slice.remove {
            Order::Remove { store_index, nsid }
        } else if self.made.get(&nsid) != Some(&slice.size_blocks) {
            let spec = SliceSpec {
                nsid,
                volume: slice.volume,
                size_blocks: slice.size_blocks,
                shape: slice.shape,
                position: slice.position,
                open_access: slice.open_access,
                parent: slice.parent.map(|p| Parent {
                    nsid: p.nsid,
                    generation: p.generation,
                }),
            };
            Order::Create {
                store_index,
                spec,
                confirmed: slice.confirmed,
            }
        } else {
            return None;
        };
        self.ordered.insert(nsid, slice);
        Some(order)
    }

    /// The slice could not be made before what it begins with was whole here: [`Self::parent_changed`].
    pub fn waits(&mut self, nsid: Nsid) {
        if let Some(slice) = self.ordered.remove(&nsid) {
            tracing::info!(%nsid, volume = %slice.volume, "a clone's slice waits until what it begins with is complete here");
            self.waiting.insert(nsid, slice);
        }
    }

    /// A slice is whole, or has another snapshot: what to order of those that begin with it.
    pub fn parent_changed(&mut self, nsid: Nsid) -> Vec<Order> {
        let begins = |s: &DesiredSlice| s.parent.is_some_and(|p| p.nsid == nsid);
        let due = self.waiting.extract_if(.., |_, slice| begins(slice));
        let due: Vec<DesiredSlice> = due.map(|(_, slice)| slice).collect();
        due.into_iter().filter_map(|s| self.order(s)).collect()
    }

    /// An order was answered; what metad must hear of it.
    pub fn done(&mut self, nsid: Nsid, end: &SliceEnd) -> Vec<Told> {
        let Some(slice) = self.ordered.remove(&nsid) else {
            return Vec::new();
        };
        let incomplete = match end {
            SliceEnd::Refused(why) => {
                tracing::error!(%nsid, volume = %slice.volume, why, "the slice could not be made or removed");
                return Vec::new();
            }
            SliceEnd::Removed => {
                self.made.remove(&nsid);
                return vec![Told::Gone(slice.store, nsid)];
            }
            SliceEnd::Made { incomplete } => *incomplete,
        };
        self.made.insert(nsid, slice.size_blocks);
        let news = !slice.confirmed || slice.has_blocks < slice.size_blocks;
        let made = news.then_some(Told::Made(slice.store, nsid, slice.size_blocks));
        // A clone's slice that comes late is incomplete too, and was never here.
        let lost = incomplete && slice.has_blocks > 0;
        let blank = lost.then_some(Told::Blank(slice.store, nsid));
        made.into_iter().chain(blank).collect()
    }
}

/// Whether a generation is deleted in `now` that was not in `before`.
fn deletes_more(before: &VolumeGenerations, now: &VolumeGenerations) -> bool {
    let since = before.head.0.max(FIRST_GENERATION.0)..now.head.0;
    let kept = now.snapshots.range(before.head..).count();
    let gone = |generation| !now.snapshots.contains_key(generation);
    before.snapshots.keys().any(gone) || since.len() > kept
}

#[cfg(test)]
mod test {
    use super::*;
    use control::core::SliceParent;
    use shardmap::generations::SnapshotState;
    use shardmap::map::{Layout, Shape};
    use shardmap::units::{Generation, VolumeId};
    use uuid::Uuid;

    const WHOLE: SliceEnd = SliceEnd::Made { incomplete: false };

    fn desired(nsid: u32, confirmed: bool) -> DesiredSlice {
        DesiredSlice {
            store: StoreId(4),
            store_uuid: Uuid::from_u128(2),
            nsid: Nsid(nsid),
            volume: VolumeId([3; 16]),
            size_blocks: 4096,
            has_blocks: if confirmed { 4096 } else { 0 },
            shape: Shape {
                shard_blocks: 1024,
                stride: 1,
                replicas: 1,
                layout: Layout::Ring,
            },
            position: 0,
            open_access: false,
            parent: None,
            confirmed,
            remove: false,
            generations: Some(VolumeGenerations::default()),
        }
    }

    fn wanted() -> Wanted {
        let mut wanted = Wanted::default();
        wanted.registered(1, StoreId(4));
        wanted
    }

    #[test]
    fn a_slice_that_metad_knows_to_be_here_is_not_ordered_as_a_new_one() {
        let orders = wanted().orders(vec![desired(5, true), desired(6, false)]);
        let ordered: Vec<_> = orders
            .into_iter()
            .map(|order| {
                let Order::Create {
                    store_index,
                    spec,
                    confirmed,
                } = order
                else {
                    panic!("{order:?}")
                };
                (store_index, spec.nsid.0, confirmed)
            })
            .collect();
        assert_eq!(ordered, [(1, 5, true), (1, 6, false)]);
    }

    #[test]
    fn a_slice_is_ordered_once_and_again_to_grow() {
        let mut wanted = wanted();
        assert_eq!(wanted.orders(vec![desired(5, false)]).len(), 1);
        assert_eq!(
            wanted.orders(vec![desired(5, false)]).len(),
            0,
            "on its way"
        );
        let told = wanted.done(Nsid(5), &WHOLE);
        assert_eq!(told, [Told::Made(StoreId(4), Nsid(5), 4096)]);
        assert_eq!(wanted.orders(vec![desired(5, true)]).len(), 0, "there");
        let larger = DesiredSlice {
            size_blocks: 8192,
            ..desired(5, true)
        };
        assert_eq!(wanted.orders(vec![larger]).len(), 1);
        let told = wanted.done(Nsid(5), &WHOLE);
        assert_eq!(told, [Told::Made(StoreId(4), Nsid(5), 8192)], "grown");
    }

    #[test]
    fn a_slice_that_was_lost_is_reported_and_one_made_for_the_first_time_is_not_lost() {
        let mut wanted = wanted();
        let (lost, larger) = (desired(5, true), desired(6, true));
        let larger = DesiredSlice {
            size_blocks: 8192,
            ..larger
        };
        let late = DesiredSlice {
            has_blocks: 0,
            ..desired(7, true)
        };
        wanted.orders(vec![lost, larger, late, desired(8, true)]);
        let made = |nsid, blocks| Told::Made(StoreId(4), Nsid(nsid), blocks);
        let blank = |nsid| Told::Blank(StoreId(4), Nsid(nsid));
        let mut done = |nsid, incomplete| wanted.done(Nsid(nsid), &SliceEnd::Made { incomplete });
        assert_eq!(done(5, true), [blank(5)]);
        assert_eq!(done(6, true), [made(6, 8192), blank(6)]);
        assert_eq!(done(7, true), [made(7, 4096)], "a clone's, never here");
        assert_eq!(done(8, false), [], "whole");
    }

    fn with_generations(head: u32, snapshots: &[u32]) -> DesiredSlice {
        let complete = |g: &u32| (Generation(*g), SnapshotState::Complete);
        let generations = VolumeGenerations {
            head: Generation(head),
            snapshots: snapshots.iter().map(complete).collect(),
            hold: false,
        };
        DesiredSlice {
            generations: Some(generations),
            ..desired(5, true)
        }
    }

    fn drops(orders: Vec<Order>) -> usize {
        let is_drop = |o: &&Order| matches!(o, Order::KeepGenerations { .. });
        orders.iter().filter(is_drop).count()
    }

    #[test]
    fn a_store_is_told_of_generations_only_when_one_was_deleted() {
        let mut wanted = wanted();
        let steps: [(u32, &[u32], usize); 7] = [
            (1, &[], 0),
            (2, &[1], 0),
            (4, &[1, 2, 3], 0),
            (4, &[1, 3], 1),
            (4, &[1, 3], 0),
            // Made, completed and deleted since the last look.
            (6, &[1, 3, 5], 1),
            (7, &[1, 3, 5, 6], 0),
        ];
        for (head, snapshots, told) in steps {
            let orders = wanted.orders(vec![with_generations(head, snapshots)]);
            assert_eq!(drops(orders), told, "{head} {snapshots:?}");
        }
        let unsure = DesiredSlice {
            generations: None,
            ..with_generations(7, &[])
        };
        assert_eq!(drops(wanted.orders(vec![unsure])), 0);
        // After a restart nothing is known: what was deleted meanwhile may still be there.
        let mut again = super::test::wanted();
        assert_eq!(drops(again.orders(vec![with_generations(7, &[1])])), 1);
    }

    #[test]
    fn a_clone_waits_for_what_it_begins_with() {
        let mut wanted = wanted();
        let clone = DesiredSlice {
            parent: Some(SliceParent {
                nsid: Nsid(5),
                generation: Generation(2),
            }),
            ..desired(6, false)
        };
        let orders = wanted.orders(vec![desired(5, true), clone.clone()]);
        let Order::Create { spec, .. } = &orders[1] else {
            panic!("{orders:?}")
        };
        let parent = Parent {
            nsid: Nsid(5),
            generation: Generation(2),
        };
        assert_eq!(spec.parent, Some(parent));
        wanted.done(Nsid(5), &WHOLE);
        wanted.waits(Nsid(6));
        assert_eq!(wanted.parent_changed(Nsid(4)).len(), 0);
        assert_eq!(wanted.parent_changed(Nsid(5)).len(), 1);
        assert_eq!(wanted.parent_changed(Nsid(5)).len(), 0, "on its way");
        wanted.waits(Nsid(6));
        let gone = DesiredSlice {
            remove: true,
            ..clone
        };
        let orders = wanted.orders(vec![gone]);
        assert!(matches!(orders[..], [Order::Remove { nsid: Nsid(6), .. }]));
        assert_eq!(
            wanted.parent_changed(Nsid(5)).len(),
            0,
            "not wanted any more"
        );
    }

    #[test]
    fn a_refused_order_is_given_again() {
        let mut wanted = wanted();
        assert_eq!(wanted.orders(vec![desired(5, false)]).len(), 1);
        assert_eq!(
            wanted.done(Nsid(5), &SliceEnd::Refused("no room".into())),
            []
        );
        assert_eq!(wanted.orders(vec![desired(5, false)]).len(), 1);
        let gone = DesiredSlice {
            remove: true,
            ..desired(6, true)
        };
        assert_eq!(wanted.orders(vec![gone]).len(), 1);
        let told = wanted.done(Nsid(6), &SliceEnd::Removed);
        assert_eq!(told, [Told::Gone(StoreId(4), Nsid(6))]);
    }
}
