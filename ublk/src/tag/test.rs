use super::*;

const SIZE_BLOCKS: u64 = 1000;
const READ: Request = Request::Read {
    first_block: 8,
    blocks: 2,
};
const WRITE: Request = Request::Write {
    first_block: 8,
    blocks: 2,
    fua: false,
};

fn desc(op_flags: u32, first_block: u64, blocks: u32) -> IoDesc {
    IoDesc {
        op_flags,
        nr_sectors: blocks * 8,
        start_sector: first_block * 8,
        addr: 0,
    }
}

struct Rig {
    tags: Tags,
    out: Vec<TagEffect>,
}

impl Rig {
    /// All tags fetched.
    fn new(count: u32) -> Self {
        let mut rig = Self {
            tags: Tags::new(count, SIZE_BLOCKS),
            out: Vec::new(),
        };
        assert_eq!(rig.step(TagEvent::Mapped).len(), count as usize);
        rig
    }

    fn step(&mut self, event: TagEvent) -> Vec<TagEffect> {
        self.tags.step(event, &mut self.out);
        std::mem::take(&mut self.out)
    }

    fn offer(&mut self, tag: u32, op_flags: u32) -> Vec<TagEffect> {
        self.step(TagEvent::Offered {
            tag: TagIndex(tag),
            desc: desc(op_flags, 8, 2),
        })
    }
}

const T0: TagIndex = TagIndex(0);
const T1: TagIndex = TagIndex(1);

#[test]
fn every_tag_is_fetched_exactly_once() {
    let mut tags = Tags::new(3, SIZE_BLOCKS);
    let mut out = Vec::new();
    tags.step(TagEvent::Mapped, &mut out);
    let fetches: Vec<_> = (0..3)
        .map(|i| TagEffect::Fetch { tag: TagIndex(i) })
        .collect();
    assert_eq!(out, fetches);
}

#[test]
#[should_panic(expected = "fetched once")]
fn a_second_fetch_of_a_tag_is_a_bug() {
    let mut rig = Rig::new(1);
    rig.step(TagEvent::Mapped);
}

#[test]
fn a_write_is_copied_before_it_is_handed_out_and_committed_with_its_bytes() {
    let mut rig = Rig::new(1);
    let take = TagEffect::TakeBuffer {
        tag: T0,
        len_bytes: 8192,
    };
    assert_eq!(rig.offer(0, uapi::OP_WRITE), [take]);
    assert_eq!(
        rig.step(TagEvent::BufferTaken { tag: T0 }),
        [TagEffect::CopyIn { tag: T0 }]
    );
    let hand = TagEffect::Hand {
        tag: T0,
        request: WRITE,
    };
    assert_eq!(
        rig.step(TagEvent::CopiedIn {
            tag: T0,
            complete: true
        }),
        [hand]
    );
    let commit = TagEffect::Commit {
        tag: T0,
        result: 8192,
    };
    assert_eq!(
        rig.step(TagEvent::Answered {
            tag: T0,
            result: Ok(())
        }),
        [commit]
    );
    assert_eq!(rig.tags.state(T0), TagState::Committing);
}

#[test]
fn a_read_is_committed_only_after_its_payload_reached_the_kernel() {
    let mut rig = Rig::new(1);
    rig.offer(0, uapi::OP_READ);
    let hand = TagEffect::Hand {
        tag: T0,
        request: READ,
    };
    assert_eq!(rig.step(TagEvent::BufferTaken { tag: T0 }), [hand]);
    let answered = rig.step(TagEvent::Answered {
        tag: T0,
        result: Ok(()),
    });
    assert_eq!(answered, [TagEffect::CopyOut { tag: T0 }]);
    let commit = TagEffect::Commit {
        tag: T0,
        result: 8192,
    };
    assert_eq!(
        rig.step(TagEvent::CopiedOut {
            tag: T0,
            complete: true
        }),
        [commit]
    );
}

#[test]
fn a_failed_read_exposes_no_bytes() {
    let mut rig = Rig::new(1);
    rig.offer(0, uapi::OP_READ);
    rig.step(TagEvent::BufferTaken { tag: T0 });
    let failed = rig.step(TagEvent::Answered {
        tag: T0,
        result: Err(Fault::Io),
    });
    assert_eq!(
        failed,
        [TagEffect::Commit {
            tag: T0,
            result: -libc::EIO
        }]
    );
}

#[test]
fn a_short_copy_is_an_io_error_and_the_write_is_never_handed_out() {
    let mut rig = Rig::new(2);
    rig.offer(0, uapi::OP_WRITE);
    rig.step(TagEvent::BufferTaken { tag: T0 });
    let failure = TagEffect::Commit {
        tag: T0,
        result: -libc::EIO,
    };
    assert_eq!(
        rig.step(TagEvent::CopiedIn {
            tag: T0,
            complete: false
        }),
        [failure]
    );
    rig.offer(1, uapi::OP_READ);
    rig.step(TagEvent::BufferTaken { tag: T1 });
    rig.step(TagEvent::Answered {
        tag: T1,
        result: Ok(()),
    });
    let failure = TagEffect::Commit {
        tag: T1,
        result: -libc::EIO,
    };
    assert_eq!(
        rig.step(TagEvent::CopiedOut {
            tag: T1,
            complete: false
        }),
        [failure]
    );
}

#[test]
fn requests_without_payload_need_no_buffer() {
    let (first_block, blocks) = (8, 2);
    let zeroes = |no_unmap, fua| Request::WriteZeroes {
        first_block,
        blocks,
        no_unmap,
        fua,
    };
    let table = [
        (uapi::OP_FLUSH, Request::Flush),
        (
            uapi::OP_DISCARD,
            Request::Discard {
                first_block,
                blocks,
            },
        ),
        (uapi::OP_WRITE_ZEROES, zeroes(false, false)),
        (
            uapi::OP_WRITE_ZEROES | uapi::IO_F_NOUNMAP,
            zeroes(true, false),
        ),
        (uapi::OP_WRITE_ZEROES | uapi::IO_F_FUA, zeroes(false, true)),
    ];
    for (op_flags, request) in table {
        let mut rig = Rig::new(1);
        assert_eq!(
            rig.offer(0, op_flags),
            [TagEffect::Hand { tag: T0, request }]
        );
        let done = rig.step(TagEvent::Answered {
            tag: T0,
            result: Ok(()),
        });
        assert_eq!(done, [TagEffect::Commit { tag: T0, result: 0 }]);
    }
}

#[test]
fn fua_travels_with_the_write() {
    let mut rig = Rig::new(1);
    rig.offer(0, uapi::OP_WRITE | uapi::IO_F_FUA);
    rig.step(TagEvent::BufferTaken { tag: T0 });
    let handed = rig.step(TagEvent::CopiedIn {
        tag: T0,
        complete: true,
    });
    let request = Request::Write {
        first_block: 8,
        blocks: 2,
        fua: true,
    };
    assert_eq!(handed, [TagEffect::Hand { tag: T0, request }]);
}

#[test]
fn descriptors_outside_the_devices_limits_fail_and_touch_nothing() {
    let big = IO_BYTES_MAX / BLOCK_BYTES + 1;
    let ragged = IoDesc {
        nr_sectors: 9,
        ..desc(uapi::OP_READ, 8, 1)
    };
    let shifted = IoDesc {
        start_sector: 65,
        ..desc(uapi::OP_READ, 8, 1)
    };
    let wrapping = IoDesc {
        start_sector: u64::MAX - 7,
        ..desc(uapi::OP_WRITE, 8, 1)
    };
    let table = [
        (desc(uapi::OP_READ, SIZE_BLOCKS, 1), libc::EIO),
        (desc(uapi::OP_WRITE, SIZE_BLOCKS - 1, 2), libc::EIO),
        (desc(uapi::OP_READ, 0, 0), libc::EIO),
        (desc(uapi::OP_WRITE, 0, big), libc::EIO),
        (desc(uapi::OP_DISCARD, 0, 1001), libc::EIO),
        (desc(11, 0, 1), libc::EOPNOTSUPP),
        (ragged, libc::EIO),
        (shifted, libc::EIO),
        (wrapping, libc::EIO),
    ];
    for (desc, code) in table {
        let mut rig = Rig::new(1);
        let refused = rig.step(TagEvent::Offered { tag: T0, desc });
        assert_eq!(
            refused,
            [TagEffect::Commit {
                tag: T0,
                result: -code
            }],
            "{desc:?}"
        );
    }
}

#[test]
fn waiting_requests_get_buffers_in_their_order_of_arrival() {
    let mut rig = Rig::new(3);
    rig.offer(2, uapi::OP_READ);
    assert_eq!(rig.step(TagEvent::BufferDenied { tag: TagIndex(2) }), []);
    assert_eq!(rig.offer(0, uapi::OP_READ), [], "nobody overtakes");
    assert_eq!(
        rig.offer(1, uapi::OP_FLUSH).len(),
        1,
        "a flush needs no buffer"
    );
    assert_eq!(rig.tags.wanting_count(), 2);
    let take = |tag| TagEffect::TakeBuffer {
        tag,
        len_bytes: 8192,
    };
    assert_eq!(rig.step(TagEvent::TurnEnded), [take(TagIndex(2))]);
    let hand = TagEffect::Hand {
        tag: TagIndex(2),
        request: READ,
    };
    assert_eq!(
        rig.step(TagEvent::BufferTaken { tag: TagIndex(2) }),
        [hand, take(T0)]
    );
    assert_eq!(rig.step(TagEvent::BufferDenied { tag: T0 }), []);
    assert_eq!(rig.tags.wanting_count(), 1);
}

#[test]
fn a_starved_request_is_not_retried_before_the_turn_ends() {
    let mut rig = Rig::new(2);
    rig.offer(0, uapi::OP_READ);
    rig.step(TagEvent::BufferDenied { tag: T0 });
    rig.offer(1, uapi::OP_FLUSH);
    let done = rig.step(TagEvent::Answered {
        tag: T1,
        result: Ok(()),
    });
    assert_eq!(done, [TagEffect::Commit { tag: T1, result: 0 }]);
    assert_eq!(rig.step(TagEvent::TurnEnded).len(), 1);
}

#[test]
fn a_withdrawn_tag_is_never_fetched_again() {
    let mut rig = Rig::new(2);
    assert_eq!(rig.step(TagEvent::Withdrawn { tag: T0 }), []);
    assert_eq!(rig.tags.state(T0), TagState::Withdrawn);
    assert_eq!(
        rig.step(TagEvent::Withdrawn { tag: T1 }),
        [TagEffect::AllWithdrawn]
    );
}

#[test]
fn a_request_in_hand_is_answered_although_the_device_is_going_away() {
    let mut rig = Rig::new(2);
    rig.offer(0, uapi::OP_FLUSH);
    assert_eq!(rig.step(TagEvent::Withdrawn { tag: T1 }), []);
    let done = rig.step(TagEvent::Answered {
        tag: T0,
        result: Ok(()),
    });
    assert_eq!(done, [TagEffect::Commit { tag: T0, result: 0 }]);
    assert_eq!(
        rig.step(TagEvent::Withdrawn { tag: T0 }),
        [TagEffect::AllWithdrawn]
    );
}

#[test]
fn a_refused_command_is_reported_and_its_tag_is_gone() {
    let mut rig = Rig::new(2);
    let broke = TagEffect::Broke {
        tag: T0,
        code: libc::EINVAL,
    };
    assert_eq!(
        rig.step(TagEvent::Refused {
            tag: T0,
            code: libc::EINVAL
        }),
        [broke]
    );
    assert_eq!(rig.tags.state(T0), TagState::Withdrawn);
}

#[test]
#[should_panic(expected = "was answered in state")]
fn an_answer_without_a_request_is_a_bug() {
    Rig::new(1).step(TagEvent::Answered {
        tag: T0,
        result: Ok(()),
    });
}

#[test]
#[should_panic(expected = "the driver answered for tag 0")]
fn a_second_request_on_a_busy_tag_is_a_bug() {
    let mut rig = Rig::new(1);
    rig.offer(0, uapi::OP_FLUSH);
    rig.offer(0, uapi::OP_FLUSH);
}

#[test]
fn a_grown_device_serves_its_new_blocks() {
    let mut rig = Rig::new(1);
    rig.step(TagEvent::Grown { size_blocks: 2000 });
    let desc = desc(uapi::OP_DISCARD, 1999, 1);
    let request = Request::Discard {
        first_block: 1999,
        blocks: 1,
    };
    let handed = rig.step(TagEvent::Offered { tag: T0, desc });
    assert_eq!(handed, [TagEffect::Hand { tag: T0, request }]);
}

/// A dull world: any tag may be offered, denied, copied, answered, at any moment that the machine
/// allows, until the driver withdraws everything.
struct World {
    rig: Rig,
    random: u64,
    /// Events that the machine is owed.
    pending: Vec<TagEvent>,
    offered: u32,
    committed: u32,
    finished: bool,
}

impl World {
    fn draw(&mut self, below: usize) -> usize {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(0x1405_7b7e_f767_814f);
        usize::try_from(self.random >> 33).unwrap() % below
    }

    fn choose(&mut self, is_closing: bool) -> TagEvent {
        let with_driver = |s| matches!(s, TagState::Fetching | TagState::Committing);
        let idle: Vec<_> = (0..4)
            .map(TagIndex)
            .filter(|t| with_driver(self.rig.tags.state(*t)))
            .collect();
        if !idle.is_empty() && self.draw(2) == 0 {
            let tag = idle[self.draw(idle.len())];
            if is_closing {
                return TagEvent::Withdrawn { tag };
            }
            self.offered += 1;
            let op = [uapi::OP_READ, uapi::OP_WRITE, uapi::OP_FLUSH][self.draw(3)];
            TagEvent::Offered {
                tag,
                desc: desc(op, 8, 2),
            }
        } else if !self.pending.is_empty() && self.draw(4) > 0 {
            let at = self.draw(self.pending.len());
            self.pending.swap_remove(at)
        } else {
            TagEvent::TurnEnded
        }
    }

    /// Does what the machine wants; returns what follows at once.
    fn obey(&mut self, effect: TagEffect) -> Option<TagEvent> {
        let goes_well = self.draw(8) > 0;
        match effect {
            TagEffect::TakeBuffer { tag, .. } if goes_well => {
                return Some(TagEvent::BufferTaken { tag });
            }
            TagEffect::TakeBuffer { tag, .. } => return Some(TagEvent::BufferDenied { tag }),
            TagEffect::CopyIn { tag } => {
                self.pending.push(TagEvent::CopiedIn {
                    tag,
                    complete: goes_well,
                });
            }
            TagEffect::CopyOut { tag } => {
                self.pending.push(TagEvent::CopiedOut {
                    tag,
                    complete: goes_well,
                });
            }
            TagEffect::Hand { tag, .. } => {
                let result = if goes_well {
                    Ok(())
                } else {
                    Err(Fault::NoSpace)
                };
                self.pending.push(TagEvent::Answered { tag, result });
            }
            TagEffect::Commit { .. } => self.committed += 1,
            TagEffect::AllWithdrawn => self.finished = true,
            TagEffect::Fetch { .. } | TagEffect::Broke { .. } => panic!("{effect:?}"),
        }
        None
    }
}

#[test]
fn whatever_the_order_each_offered_request_is_committed_exactly_once() {
    for seed in 1..=200u64 {
        let mut world = World {
            rig: Rig::new(4),
            random: seed,
            pending: Vec::new(),
            offered: 0,
            committed: 0,
            finished: false,
        };
        for round in 0..600 {
            let event = world.choose(round > 400);
            let mut effects = VecDeque::from(world.rig.step(event));
            while let Some(effect) = effects.pop_front() {
                if let Some(event) = world.obey(effect) {
                    effects.extend(world.rig.step(event));
                }
            }
        }
        assert!(world.finished, "seed {seed} did not finish");
        assert_eq!(world.offered, world.committed, "seed {seed}");
    }
}
