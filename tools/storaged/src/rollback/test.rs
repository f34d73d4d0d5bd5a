use super::*;
use proptest::prelude::*;
use shardmap::units::Blocks;

/// Two windows and a part of a third.
const SIZE_BLOCKS: u64 = 2 * WINDOW_BLOCKS + 5_000;

fn set(runs: &[(u64, u32)]) -> BlockSet {
    let mut set = BlockSet::new();
    for (start, blocks) in runs {
        set.insert(BlockRange::new(Lba(*start), Blocks(*blocks)).unwrap());
    }
    set
}

/// What is in a window of a set.
fn window(of: &BlockSet, from: RegionIndex) -> BlockSet {
    let start = u64::from(from.0) * u64::from(REGION_BLOCKS);
    let blocks = u32::try_from(WINDOW_BLOCKS).unwrap();
    of.clone()
        .take(BlockRange::new(Lba(start), Blocks(blocks)).unwrap())
}

/// Runs it to its end, with answers in the order that `draw` says; what was copied and what was zeroed. A
/// piece is read as zeroes that has one of `zeroes`.
fn run(
    (differing, shown, zeroes): (&BlockSet, &BlockSet, &BlockSet),
    mut draw: impl FnMut(usize) -> usize,
) -> [BlockSet; 3] {
    let mut it = Rolling::new(SIZE_BLOCKS);
    let [mut copied, mut zeroed, mut zeroes_read] = std::array::from_fn(|_| BlockSet::new());
    let (mut under_way, mut is_flushed) = (Vec::new(), false);
    while !it.is_done() {
        while let Some(ask) = it.next_ask() {
            under_way.push(ask);
            let pieces = |a: &&Ask| matches!(a, Ask::Read(..) | Ask::Write(..) | Ask::Zero(..));
            assert!(under_way.iter().filter(pieces).count() <= PIECES_MAX);
        }
        let nth = draw(under_way.len());
        let once = |into: &mut BlockSet, range: BlockRange| {
            assert!(!into.intersects(range), "{range:?} twice");
            into.insert(range);
        };
        match under_way.swap_remove(nth) {
            Ask::Differing(from) => it.on_blocks(window(differing, from)),
            Ask::Shown(from) => it.on_blocks(window(shown, from)),
            Ask::Read(id, range) if draw(4) == 0 => {
                assert!(range.blocks().0 <= COPY_BLOCKS_MAX);
                it.put_back(id);
            }
            Ask::Read(id, range) => {
                let is_zero = zeroes.intersects(range);
                if is_zero {
                    zeroes_read.insert(range);
                }
                it.on_read(id, is_zero);
            }
            Ask::Write(id, range) => {
                once(&mut copied, range);
                it.on_written(id);
            }
            Ask::Zero(id, range) => {
                once(&mut zeroed, range);
                it.on_written(id);
            }
            Ask::Flush => {
                assert!(under_way.is_empty(), "durable before all is written");
                is_flushed = true;
                it.on_flushed();
            }
        }
    }
    assert_eq!(it.next_ask(), None);
    assert!(is_flushed, "done before it is durable");
    [copied, zeroed, zeroes_read]
}

fn any_set() -> impl Strategy<Value = BlockSet> {
    let run = (0..SIZE_BLOCKS - 100, 1u32..100);
    proptest::collection::vec(run, 0..20).prop_map(|runs| set(&runs))
}

proptest! {
    #[test]
    fn what_differs_is_written_once_as_the_snapshot_has_it_and_nothing_else(
        differing in any_set(),
        shown in any_set(),
        zeroes in any_set(),
        seed in any::<u64>(),
    ) {
        let mut prng = reactor::sim::Prng::new(seed);
        let draw = |n: usize| usize::try_from(prng.below(n as u64)).unwrap();
        let [copied, zeroed, zeroes_read] = run((&differing, &shown, &zeroes), draw);
        let (mut to_copy, mut to_zero) = (differing.clone(), differing);
        to_copy.intersect(&shown);
        to_copy.subtract(&zeroes_read);
        to_zero.subtract(&shown);
        to_zero.merge(&zeroes_read);
        prop_assert!(copied == to_copy && zeroed == to_zero);
    }
}

#[test]
fn snapshots_that_do_not_differ_cost_a_look_and_a_flush() {
    let mut it = Rolling::new(SIZE_BLOCKS);
    for from in [0, PRESENCE_REGIONS, 2 * PRESENCE_REGIONS] {
        assert_eq!(it.next_ask(), Some(Ask::Differing(RegionIndex(from))));
        assert_eq!(it.next_ask(), None);
        it.on_blocks(BlockSet::new());
    }
    assert_eq!(it.percent(), 100);
    assert_eq!(it.next_ask(), Some(Ask::Flush));
    assert!(!it.is_done());
    it.on_flushed();
    assert!(it.is_done());
}
