//! A fixed table of things in flight, addressed by index and turn.
//!
//! A slot's turn grows each time the slot is emptied, so an id kept too long (a late completion, a
//! cancel that crossed its completion) finds nothing instead of a stranger.

/// Slot and turn: the name of one thing for as long as it is in the slab.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key {
    /// Slot.
    pub(crate) index: u32,
    /// How often the slot was reused before.
    pub(crate) turn: u32,
}

impl Key {
    /// As it travels in a completion's `user_data`.
    pub(crate) const fn to_u64(self) -> u64 {
        (self.turn as u64) << 32 | self.index as u64
    }

    /// The inverse of [`Key::to_u64`].
    #[allow(
        clippy::cast_possible_truncation,
        reason = "takes the two halves apart"
    )]
    pub(crate) const fn from_u64(raw: u64) -> Self {
        Self {
            index: raw as u32,
            turn: (raw >> 32) as u32,
        }
    }
}

struct Slot<T> {
    turn: u32,
    thing: Option<T>,
}

/// The table. Slots are allocated on first use, up to the limit.
pub(crate) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
    limit: u32,
}

impl<T> Slab<T> {
    pub(crate) fn new(limit: u32) -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
            limit,
        }
    }

    /// How many things are in it.
    pub(crate) fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// Puts a thing in; gives it back if the slab is full.
    pub(crate) fn insert(&mut self, thing: T) -> Result<Key, T> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.slots.len() < self.limit as usize => {
                self.slots.push(Slot {
                    turn: 0,
                    thing: None,
                });
                u32::try_from(self.slots.len() - 1).expect("below a u32 limit")
            }
            None => return Err(thing),
        };
        let slot = &mut self.slots[index as usize];
        assert!(
            slot.thing.replace(thing).is_none(),
            "slab: slot {index} was on the free list"
        );
        Ok(Key {
            index,
            turn: slot.turn,
        })
    }

    fn slot_mut(&mut self, key: Key) -> Option<&mut Slot<T>> {
        self.slots
            .get_mut(key.index as usize)
            .filter(|slot| slot.turn == key.turn)
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let slot = self.slots.get(key.index as usize)?;
        if slot.turn == key.turn {
            slot.thing.as_ref()
        } else {
            None
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.slot_mut(key)?.thing.as_mut()
    }

    /// Takes a thing out. `None`: the key is stale or foreign.
    pub(crate) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slot_mut(key)?;
        let thing = slot.thing.take()?;
        slot.turn = slot.turn.wrapping_add(1);
        self.free.push(key.index);
        Some(thing)
    }

    /// All keys in use, by ascending slot.
    pub(crate) fn keys(&self) -> Vec<Key> {
        self.iter().map(|(key, _)| key).collect()
    }

    /// All things, by ascending slot.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (Key, &T)> {
        self.slots.iter().zip(0u32..).filter_map(|(slot, index)| {
            slot.thing.as_ref().map(|thing| {
                (
                    Key {
                        index,
                        turn: slot.turn,
                    },
                    thing,
                )
            })
        })
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_key_finds_nothing_once_its_thing_is_gone() {
        let mut slab = Slab::new(1);
        let first = slab.insert('a').unwrap();
        assert_eq!(slab.insert('b'), Err('b'));
        assert_eq!(slab.remove(first), Some('a'));
        let second = slab.insert('c').unwrap();
        assert_eq!(second.index, first.index);
        assert_eq!((slab.remove(first), slab.get(first)), (None, None));
        assert_eq!(slab.get(second), Some(&'c'));
    }

    #[test]
    fn a_key_survives_its_trip_through_the_kernel() {
        let key = Key {
            index: 7,
            turn: u32::MAX,
        };
        assert_eq!(Key::from_u64(key.to_u64()), key);
        let slab = Slab::<u8>::new(4);
        assert_eq!(slab.get(key), None);
    }

    #[test]
    fn turns_wrap_without_confusing_neighbours() {
        let mut slab = Slab::new(2);
        let a = slab.insert(1).unwrap();
        let b = slab.insert(2).unwrap();
        slab.slots[a.index as usize].turn = u32::MAX;
        let a = Key {
            turn: u32::MAX,
            ..a
        };
        assert_eq!(slab.remove(a), Some(1));
        assert_eq!(
            slab.insert(3).unwrap(),
            Key {
                index: a.index,
                turn: 0
            }
        );
        assert_eq!((slab.get(b), slab.len()), (Some(&2), 2));
    }
}
