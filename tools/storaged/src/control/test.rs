use super::*;
use crate::bridge::{NEWS_MAX, ORDERS_MAX};
use reactor::sim::{SimConfig, SimWorld};
use reactor::{App, Completion, Driver, Token};
use shardmap::map::{Layout, Shape};
use shardmap::units::VolumeId;

struct Idle;

impl App for Idle {
    fn on_completion(&mut self, _: &mut dyn Driver, _: Completion) {}

    fn on_turn_end(&mut self, _: &mut dyn Driver) {}

    fn is_finished(&self) -> bool {
        false
    }
}

fn control() -> Control {
    let mut world = SimWorld::new(SimConfig::seeded(1));
    let node = world.add_node();
    let _app = world.boot(node, |_| Idle);
    let token = Token {
        room: 1,
        index: 0,
        value: 0,
    };
    let bell = world.on(node, |io| io.doorbell(token).unwrap());
    let orders = Arc::new(Mailbox::new(ORDERS_MAX, bell));
    let text = "name = \"s1\"\ndata_dir = \"state\"\nlisten = \"127.0.0.1:4420\"\n\
                metad = [\"127.0.0.1:1\"]\n[[store]]\npath = \"s1.img\"\n";
    let identity = Identity {
        uuid: Uuid::from_u128(1),
        cluster: None,
    };
    let (_news, news) = tokio::sync::mpsc::channel(NEWS_MAX);
    let fills = Arc::new([Fill::default()]);
    let config = toml::from_str(text).unwrap();
    let mut control = Control::new(config, identity, orders, news, fills);
    control.stores[0].id = Some(StoreId(4));
    control
}

fn desired(nsid: u32, confirmed: bool) -> DesiredSlice {
    DesiredSlice {
        store: StoreId(4),
        store_uuid: Uuid::from_u128(2),
        nsid: Nsid(nsid),
        volume: VolumeId([3; 16]),
        size_blocks: 4096,
        shape: Shape {
            shard_blocks: 1024,
            stride: 1,
            replicas: 1,
            layout: Layout::Ring,
        },
        position: 0,
        open_access: false,
        confirmed,
        remove: false,
    }
}

#[test]
fn a_slice_that_metad_knows_to_be_here_is_not_ordered_as_a_new_one() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let mut control = control();
    runtime.block_on(control.order_slices(vec![desired(5, true), desired(6, false)]));
    let ordered: Vec<_> = std::iter::from_fn(|| control.orders.recv())
        .map(|order| {
            let Order::Create {
                spec, confirmed, ..
            } = order
            else {
                panic!("{order:?}")
            };
            (spec.nsid.0, confirmed)
        })
        .collect();
    assert_eq!(ordered, [(5, true), (6, false)]);
}
