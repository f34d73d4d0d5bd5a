use super::*;
use proptest::prelude::*;

const SHARD_BLOCKS: u32 = 16_384;

fn store(id: u32, server: u32, promised_bytes: u64) -> Candidate {
    Candidate {
        store: StoreId(id),
        server: ServerId(server),
        domain: format!("server-{server}"),
        room_bytes: (1 << 40) - promised_bytes,
        promised_bytes,
    }
}

fn wish(replicas: u8, stride: Option<u16>, layout: Layout) -> Wish {
    Wish {
        size_blocks: 1 << 20,
        shard_blocks: SHARD_BLOCKS,
        replicas,
        stride,
        layout,
    }
}

fn known(id: u32, stores: &[u32]) -> KnownSet {
    KnownSet {
        id,
        stores: stores.iter().map(|s| StoreId(*s)).collect(),
        same_rule: true,
    }
}

#[test]
fn three_servers_give_the_only_set_and_the_next_volume_shares_it() {
    let stores = [store(1, 1, 0), store(2, 2, 0), store(3, 3, 0)];
    let first = choose(wish(3, None, Layout::Ring), &stores, &[]).unwrap();
    assert_eq!(first.reused, None);
    assert_eq!(first.stores, [StoreId(1), StoreId(2), StoreId(3)]);
    let second = choose(
        wish(3, None, Layout::Ring),
        &stores,
        &[known(7, &[1, 2, 3])],
    )
    .unwrap();
    assert_eq!(second.reused, Some(7));
    assert_eq!(second.stores, first.stores);
}

#[test]
fn two_stores_of_one_server_are_never_in_one_set() {
    let stores = [store(1, 1, 0), store(2, 1, 0), store(3, 2, 0)];
    assert_eq!(
        choose(wish(3, None, Layout::Ring), &stores, &[]),
        Err(NoPlace::TooFewDomains {
            needed: 3,
            found: 2
        })
    );
}

#[test]
fn a_disjoint_set_is_preferred_to_sharing() {
    let stores: Vec<_> = (1..=6).map(|i| store(i, i, 0)).collect();
    let choice = choose(
        wish(3, Some(3), Layout::Ring),
        &stores,
        &[known(0, &[1, 2, 3])],
    )
    .unwrap();
    assert_eq!(choice.reused, None);
    assert_eq!(choice.stores, [StoreId(4), StoreId(5), StoreId(6)]);
}

#[test]
fn the_emptier_of_two_sets_is_shared() {
    let stores: Vec<_> = (1..=6)
        .map(|i| store(i, i, if i <= 3 { 1 << 30 } else { 0 }))
        .collect();
    let sets = [known(0, &[1, 2, 3]), known(1, &[4, 5, 6])];
    let choice = choose(wish(3, Some(3), Layout::Ring), &stores, &sets).unwrap();
    assert_eq!(choice.reused, Some(1));
}

#[test]
fn a_set_with_a_full_member_is_not_shared_and_the_numbers_are_named() {
    let mut stores = vec![store(1, 1, 0), store(2, 2, 0), store(3, 3, 0)];
    stores[2].room_bytes = 10;
    let refused = choose(
        wish(3, None, Layout::Ring),
        &stores,
        &[known(0, &[1, 2, 3])],
    );
    assert_eq!(
        refused,
        Err(NoPlace::NoRoom {
            needed_bytes: 1 << 32,
            found: 2,
            needed: 3
        })
    );
}

#[test]
fn block_layout_refuses_a_stride_that_is_not_whole_groups() {
    let stores: Vec<_> = (1..=6).map(|i| store(i, i, 0)).collect();
    assert_eq!(
        choose(wish(3, Some(5), Layout::Block), &stores, &[]),
        Err(NoPlace::BadStride {
            stride: 5,
            replicas: 3
        })
    );
}

#[test]
fn the_forecast_counts_copysets_over_server_tuples() {
    let stores: Vec<_> = (1..=6).map(|i| store(i, i, 0)).collect();
    let servers: Vec<_> = (1..=6).map(ServerId).collect();
    let ring = choose(wish(3, Some(6), Layout::Ring), &stores, &[]).unwrap();
    let seen = forecast(&ring, &servers, 12);
    assert_eq!(seen.copysets, 6);
    assert_eq!(seen.loss_probability[..2], [0.0, 0.0]);
    assert!(
        (seen.loss_probability[2] - 6.0 / 220.0).abs() < 1e-12,
        "C(12,3) = 220"
    );
    let block = choose(wish(3, Some(6), Layout::Block), &stores, &[]).unwrap();
    assert!((forecast(&block, &servers, 12).loss_probability[2] - 2.0 / 220.0).abs() < 1e-12);
}

#[test]
fn one_replica_is_lost_with_its_server() {
    let stores: Vec<_> = (1..=4).map(|i| store(i, i, 0)).collect();
    let choice = choose(wish(1, Some(1), Layout::Ring), &stores, &[]).unwrap();
    let seen = forecast(&choice, &[ServerId(1)], 4);
    assert!((seen.loss_probability[0] - 0.25).abs() < 1e-12);
    assert!((seen.loss_probability[2] - 0.75).abs() < 1e-12);
}

proptest! {
    #[test]
    fn chosen_stores_are_distinct_domains_with_room(
        servers in 1u32..12, per_server in 1u32..4, replicas in 1u8..=5,
        stride in proptest::option::of(1u16..30), ring: bool, promised in 0u64..1 << 41,
    ) {
        let layout = if ring { Layout::Ring } else { Layout::Block };
        let stores: Vec<_> = (0..servers * per_server)
            .map(|i| {
                let mut s = store(i + 1, i % servers, 0);
                s.promised_bytes = promised.rotate_left(i) % (1 << 40);
                s.room_bytes = (1 << 40) - s.promised_bytes;
                s
            })
            .collect();
        let sets = [known(0, &[1, 2, 3]), known(1, &[2, 3])];
        let wish = wish(replicas, stride, layout);
        let Ok(choice) = choose(wish, &stores, &sets) else { return Ok(()) };
        prop_assert_eq!(choice.stores.len(), usize::from(choice.shape.stride));
        let mut domains = BTreeSet::new();
        for (position, id) in choice.stores.iter().enumerate() {
            let s = stores.iter().find(|s| s.store == *id).unwrap();
            prop_assert!(domains.insert(s.domain.clone()));
            prop_assert!(s.room_bytes >= choice.slice_bytes[position]);
        }
        prop_assert_eq!(choose(wish, &stores, &sets).unwrap(), choice);
    }

    #[test]
    fn slices_together_hold_every_shard_r_times(
        stride in 1u16..=24, replicas in 1u8..=5, size_blocks in 1u64..1 << 26, ring: bool,
    ) {
        prop_assume!(u16::from(replicas) <= stride);
        let layout = if ring { Layout::Ring } else { Layout::Block };
        prop_assume!(ring || stride.is_multiple_of(u16::from(replicas)));
        let shape = Shape { shard_blocks: SHARD_BLOCKS, stride, replicas, layout };
        let total: u64 = slice_bytes(shape, size_blocks).iter().sum();
        let shards = size_blocks.div_ceil(u64::from(SHARD_BLOCKS));
        prop_assert_eq!(total, shards * u64::from(replicas) * u64::from(SHARD_BLOCKS) * 4096);
    }
}
