//! Classes of flows: how they are found, and what each is counted by.

use super::*;

#[test]
fn prefix_else_dscp_else_port_decides_the_class_with_its_ring_and_deadline() {
    // Class by prefix plus one, type of service, port; class, ring, deadline in seconds.
    for (class, tos, port, wanted) in [
        (0, 0, 80, (0, 2, 10)),
        (1, 0, 80, (1, 0, 60)),
        (1, 46 << 2, 22, (1, 0, 60)),
        (0, 46 << 2, 80, (2, 1, 1)),
        (0, 46 << 2 | 3, 22, (2, 1, 1)),
        (0, 45 << 2, 22, (3, 4, 30)),
        (9, 0, 22, (3, 4, 30)),
        (9, 0, 80, (0, 2, 10)),
    ] {
        let mut bench = Bench::new(classes(), &[]);
        let now = bench.now;
        bench.take(Held { class, tos, dport: Be16::new(port), ..held(1, now) });
        let queue = &bench.engine.services[&SERVICE].queue;
        let entry = queue.get(1).expect("it waits");
        let seconds = (entry.deadline - now).as_secs();
        assert_eq!((entry.class, entry.ring, seconds), wanted, "class {class}, tos {tos}, port {port}");
        let report = bench.report();
        let waiting: Vec<u64> = report.classes.iter().map(|class| class.waiting).collect();
        assert_eq!(waiting.iter().position(|waiting| *waiting == 1), Some(usize::from(wanted.0)));
        assert_eq!(report.classes[usize::from(wanted.0)].priority, wanted.1 + 1);
    }
}

#[test]
fn urgent_classes_are_released_first_and_each_is_counted_by_itself() {
    let mut bench = Bench::new(classes(), &[place(1, 1, 0)]);
    let now = bench.now;
    bench.take(held(1, now));
    bench.take(Held { dport: Be16::new(22), ..held(2, now) });
    bench.take(Held { tos: 46 << 2, ..held(3, now) });
    bench.take(Held { class: 1, ..held(4, now) });
    bench.follow(|plan| plan.servers = vec![place(1, 1, 3)]);
    assert_eq!(flows(&bench.step()), [4, 3, 1]);
    // The last one's deadline is its own.
    bench.follow(|plan| plan.servers = vec![]);
    assert_eq!(bench.step_after(30 * SECOND), [(2, Sent::Reset)]);
    let report = bench.report();
    let names: Vec<Option<&str>> = report.classes.iter().map(|class| class.name.as_deref()).collect();
    assert_eq!(names, [None, Some("gold"), Some("voice"), Some("shell")]);
    for (class, end) in report.classes.iter().zip([End::Released, End::Released, End::Released, End::Expired]) {
        assert_eq!((class.arrived, class.ends[end as usize]), (1, 1), "{class:?}");
    }
}

#[test]
fn classes_are_known_by_name_over_a_reload() {
    let mut bench = Bench::new(classes(), &[]);
    let now = bench.now;
    bench.take(Held { class: 1, ..held(1, now) });
    bench.take(Held { class: 2, ..held(2, now) });
    bench.take(Held { class: 2, ..held(3, now) });
    bench.take(held(4, now));
    let counts = |bench: &Bench| -> Vec<_> {
        let classes = bench.report().classes.into_iter();
        classes.map(|class| (class.name.unwrap_or_default(), class.arrived, class.waiting)).collect()
    };
    let told = counts(&bench);
    let before = classes();
    let of_names = |names: &[usize]| {
        let all: Vec<_> = before.classes.iter().cloned().collect();
        let some: Vec<QueueClass> = names.iter().map(|at| all[*at].clone()).collect();
        Arc::new(ServiceQueue { classes: some.into(), ..before.clone() })
    };
    // Another order; one is gone; it is there again, and new.
    let last = before.classes.len() - 1;
    bench.follow(|plan| plan.settings = of_names(&(0..=last).rev().collect::<Vec<_>>()));
    let mut reversed = told.clone();
    reversed[1..].reverse();
    assert_eq!(counts(&bench), reversed);
    bench.follow(|plan| plan.settings = of_names(&[0]));
    assert_eq!(counts(&bench), [(String::new(), 3, 3), told[1].clone()]);
    bench.follow(|plan| plan.settings = of_names(&[1, 0]));
    assert_eq!(counts(&bench), [(String::new(), 3, 3), (told[2].0.clone(), 0, 0), told[1].clone()]);
}
