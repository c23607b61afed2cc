//! Whatever happens in whatever order: nobody is lost or counted twice, and memory is that of those who wait.

use proptest::prelude::*;

use super::*;

const SERVERS: u16 = 3;

#[derive(Clone, Debug)]
enum Event {
    Flow {
        hash: u64,
        class: u16,
        length: u16,
        source: u8,
        is_datagram: bool,
        verified: bool,
        age_ms: u64,
        /// Of the packet; another number is of another connection.
        sequence: u32,
    },
    Verified(u64),
    Reset(u64),
    /// After so long; of what goes out, only so many can be sent.
    Step {
        after_ms: u64,
        sendable: usize,
    },
    /// A server has room for one more.
    Free(u16),
    Servers(Vec<(u16, u32, u32)>),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let hash = 0u64..24;
    let flow = (hash.clone(), 0u16..4, 20u16..200, 0u8..6, any::<bool>(), any::<bool>(), 0u64..1_500, 0u32..8)
        .prop_map(|(hash, class, length, source, is_datagram, verified, age_ms, sequence)| {
            // Whether a flow has datagrams is in its hash.
            let hash = hash << 1 | u64::from(is_datagram);
            let sequence = u32::from(!is_datagram && sequence == 0);
            Event::Flow { hash, class, length, source, is_datagram, verified, age_ms, sequence }
        });
    let servers = prop::collection::vec((1..=SERVERS, 0u32..5, 0u32..6), 0..3);
    let event = prop_oneof![
        12 => flow,
        2 => (0u64..48).prop_map(Event::Verified),
        1 => (0u64..48).prop_map(Event::Reset),
        4 => (0u64..700, 0usize..12).prop_map(|(after_ms, sendable)| Event::Step { after_ms, sendable }),
        3 => (1..=SERVERS).prop_map(Event::Free),
        1 => servers.prop_map(Event::Servers),
    ];
    prop::collection::vec(event, 1..120)
}

fn settings(verify: Verify, max_entries: usize) -> ServiceQueue {
    let at_deadline = if max_entries.is_multiple_of(2) { AtDeadline::Respond } else { AtDeadline::Reset };
    let order = order::Settings { max_entries, max_per_source: 3.min(max_entries), ..order::Settings::default() };
    let classes = classes().classes;
    ServiceQueue {
        order,
        verify,
        classes,
        at_deadline,
        deadline: 2 * SECOND,
        udp_memory: 1_500,
        ..ServiceQueue::default()
    }
}

proptest! {
    #[test]
    fn arrived_is_waiting_and_ended_and_memory_is_of_those_who_wait(
        events in events(),
        verify in prop::sample::select(vec![Verify::Auto, Verify::Always, Verify::Never]),
        max_entries in 1usize..16,
        memory in 600u64..6_000,
        rival_after in prop::option::of(1u32..4),
    ) {
        let mut bench = Bench::new(settings(verify, max_entries), &[place(1, 1, 2), place(2, 2, 2)]);
        bench.follow(|plan| plan.responder = SERVERS + 1);
        bench.engine.set_memory_limit(memory);
        bench.room.rival_after = rival_after;
        for event in events {
            let now = bench.now;
            match event {
                Event::Flow { hash, class, length, source, is_datagram, verified, age_ms, sequence } => bench.take(Held {
                    src: address(IpAddr::from([10, 0, source, 1])),
                    protocol: if is_datagram { protocol::UDP } else { protocol::TCP },
                    verified: u8::from(verified),
                    class,
                    length,
                    sequence,
                    ..held(hash, now - ms(age_ms))
                }),
                Event::Verified(hash) => bench.tell(kind::VERIFIED, hash),
                Event::Reset(hash) => bench.tell(kind::RESET, hash),
                Event::Step { after_ms, sendable } => {
                    bench.now += ms(after_ms);
                    let before = bench.room.all().iter().sum::<u32>() + bench.room.rivals.get();
                    let rivals = bench.room.rivals.get();
                    bench.engine.step(bench.now, &bench.room, &mut bench.out);
                    let out = std::mem::take(&mut bench.out);
                    let taken = out.iter().filter(|out| out.ticket.backend != NO_BACKEND).count() as u32;
                    let after = bench.room.all().iter().sum::<u32>();
                    prop_assert_eq!(after + rivals, before + taken + bench.room.rivals.get() - rivals);
                    for out in out.into_iter().skip(sendable) {
                        bench.engine.take_back(out, &bench.room);
                    }
                }
                Event::Free(server) => {
                    if bench.room.active(server) > 0 {
                        bench.room.give_back(server);
                    }
                }
                Event::Servers(servers) => {
                    let servers = servers.into_iter().map(|(backend, weight, high_water)| place(backend, weight, high_water));
                    let mut servers: Vec<Candidate> = servers.collect();
                    servers.dedup_by_key(|place| place.backend);
                    bench.follow(|plan| plan.servers = servers);
                }
            }
            bench.out.clear();
            bench.assert_sums();
            prop_assert!(bench.report().waiting <= max_entries as u64);
            prop_assert!(bench.datagram_bytes() <= 1_500);
        }
        // In the end all are gone.
        bench.now += 120 * SECOND;
        bench.step();
        prop_assert_eq!((bench.engine.len(), bench.engine.memory()), (0, 0));
    }
}
