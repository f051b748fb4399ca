//! The engine on the host and the loaded programs, given the same frames, agree in verdict, bytes, flows, live words
//! and counters; and what they send has checksums that an independent parser finds right.
//!
//! Needs root: programs are loaded, but attached to nothing.

mod direct;
mod explain;
mod packets;
mod routes;
mod switches;

use bg_common::{Cause, Colour, Event, NO_BACKEND, NextHop, Protocol, Timing, Trips};
use bg_ebpf::Action;
use bg_tests::{
    frames::{PacketSpec, assert_checksums, ends, is_icmp, tcp_flags},
    run,
    twin::{Explainer, FRESH, Host, Kernel, Outcome, Program, Sizes},
};
use packets::{
    BACKENDS, CLIENTS, Complaint, Damage, FLAGS, OUT, ROUTED, SERVICES, Spec, VIPS, at, complaint, frame, mirrored,
    scenario, spec,
};
use proptest::{prelude::*, sample::select, test_runner::TestRunner};
use routes::{DMAC, SMAC, lay_routes, mac};
use std::{cell::RefCell, net::SocketAddr};
use switches::{Ending, Instant, Queue};

#[derive(Clone, Debug)]
enum Step {
    Packet(Spec),
    /// The backend of the packet that was sent on last answers, by a segment with these flags or a datagram.
    Answer(u8),
    /// A router, or the receiver, complains of the packet that was sent on last.
    Error(Complaint),
    /// The copy of the packet that was sent on last comes by tc ingress.
    Copy(Colour),
    /// Makes the other colour of a deployment live.
    Switch {
        deployment: u16,
        ending: Ending,
    },
    /// Freezes a deployment, or finds it frozen beyond its time.
    Freeze {
        deployment: u16,
        is_over: bool,
        queue: Queue,
    },
    /// Backends of a colour of this service go down, and are to get nothing then, or come back.
    Health {
        service: usize,
        colour: Colour,
        is_down: bool,
    },
    /// A drain begins to a colour that is down, and a segment comes that may be of a connection from before: one of [`STRAYS`].
    Stray(usize),
}

/// Services, their deployments, and the ends of a connection.
const STRAYS: [(usize, u16, &str, &str); 3] = [
    (0, 0, CLIENTS[0], "203.0.113.10:443"),
    (1, 1, CLIENTS[1], "203.0.113.11:443"),
    (3, 0, CLIENTS[3], "[2001:db8::10]:443"),
];

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        12 => spec().prop_map(Step::Packet),
        4 => mirrored().prop_map(Step::Packet),
        4 => select(Colour::ALL.to_vec()).prop_map(Step::Copy),
        5 => select(FLAGS.to_vec()).prop_map(Step::Answer),
        // By which a backend refuses a connection that it does not know.
        1 => Just(Step::Answer(tcp_flags::RST)),
        4 => complaint().prop_map(Step::Error),
        3 => (0u16..2, select(vec![
            Ending::Cut,
            Ending::Drain,
            Ending::Drained,
            Ending::Timed(Instant::Ahead),
            Ending::Timed(Instant::Passed),
            Ending::Timed(Instant::Guarded),
            Ending::Timed(Instant::Expired),
            Ending::Timed(Instant::Watched),
            Ending::Timed(Instant::Watched),
            Ending::Timed(Instant::Ramp),
            Ending::Timed(Instant::Foreign),
        ]))
            .prop_map(|(deployment, ending)| Step::Switch { deployment, ending }),
        1 => (0u16..2, any::<bool>(), select(vec![Queue::Open, Queue::Closed, Queue::Drops]))
            .prop_map(|(deployment, is_over, queue)| Step::Freeze { deployment, is_over, queue }),
        4 => (0..SERVICES, select(Colour::ALL.to_vec()), prop_oneof![3 => Just(true), 1 => Just(false)])
            .prop_map(|(service, colour, is_down)| Step::Health { service, colour, is_down }),
        1 => (0..STRAYS.len()).prop_map(Step::Stray),
    ];
    proptest::collection::vec(step, 1..40)
}

/// What the backend of a packet that was sent on answers.
fn answer(sent: &[u8], protocol: Protocol, flags: u8) -> Spec {
    let (client, backend) = ends(sent);
    let packet = match protocol {
        Protocol::Tcp => PacketSpec::tcp(backend, client, flags),
        Protocol::Udp => PacketSpec::udp(backend, client),
    };
    Spec { packet, damage: Damage::None }
}

/// What came of a packet, if it was not dropped. A case in which next hops have aged is rejected: the host's clock stands still.
type Agreed = Result<Option<Outcome>, TestCaseError>;

/// Runs a packet through the host and one loaded program.
fn agree_on(subject: &mut Subject, host: &Host, program: Program, spec: &Spec) -> Agreed {
    let bytes = frame(spec.packet.frame(), &spec.damage, program);
    // Only replies are restored on the way out; what opens their flows comes in.
    let program = match program {
        Program::TcEgress if !BACKENDS.iter().any(|backend| at(backend) == spec.packet.from) => Program::TcIngress,
        program => program,
    };
    let found = agree_on_frame(subject, host, Way::By(program), &bytes)?;
    if let Some(found) = &found
        && matches!(found.action, Action::Redirect | Action::Deliver)
        && matches!(spec.damage, Damage::None)
    {
        assert_checksums(&found.frame);
    }
    Ok(found)
}

/// How a frame comes.
#[derive(Clone, Copy)]
enum Way {
    /// By a program.
    By(Program),
    /// By tc ingress, as a copy for a colour.
    AsCopyFor(Colour),
}

fn agree_on_frame(subject: &mut Subject, host: &Host, way: Way, bytes: &[u8]) -> Agreed {
    let kernel = &mut subject.kernel;
    let mut expected = match way {
        Way::By(Program::Xdp) => host.early(bytes),
        Way::By(Program::TcEgress) => host.egress(bytes),
        Way::By(Program::TcIngress) => host.ingress(bytes),
        Way::AsCopyFor(colour) => host.copied(bytes, colour),
    };
    // Unmodified and handed on looks the same from outside, and so does leaving by either way.
    expected.action = match expected.action {
        Action::Deliver | Action::Defer if expected.frame == bytes => Action::Pass,
        Action::Resolve | Action::Reset | Action::Refuse | Action::Unreachable => Action::Redirect,
        Action::TooBig | Action::TimeExceeded => Action::Redirect,
        action => action,
    };
    let explained = match (&mut subject.explainer, way) {
        (Some(explainer), Way::By(program)) => {
            Some(while_fresh(kernel, host, |kernel| explain::explain(explainer, kernel, program, bytes))?)
        }
        // Nobody asks to explain a copy.
        _ => None,
    };
    let found = while_fresh(kernel, host, |kernel| match way {
        Way::By(program) => kernel.run(program, bytes).expect("run"),
        Way::AsCopyFor(colour) => kernel.run_copy(bytes, colour).expect("run"),
    })?;
    if let Some((outcome, steps)) = explained {
        explain::agrees(&outcome, &found, &steps, host);
    }
    if expected.action == Action::Drop {
        // A dropped frame's bytes are nobody's business.
        assert_eq!(found.action, Action::Drop, "{bytes:02x?}");
        return Ok(None);
    }
    assert_eq!(found, expected, "{bytes:02x?}");
    Ok(Some(found))
}

/// Makes next hops fresh, and rejects the case if they have aged before the run was over.
fn while_fresh<T>(kernel: &mut Kernel, host: &Host, run: impl FnOnce(&mut Kernel) -> T) -> Result<T, TestCaseError> {
    let begin = kernel.refresh_next_hops(&host.scenario).expect("refresh");
    let result = run(kernel);
    let took = kernel.tick().expect("the clock").wrapping_sub(begin);
    if took < FRESH { Ok(result) } else { Err(TestCaseError::reject("a busy machine let next hops age")) }
}

/// The loaded programs, and those that explain, on the same maps.
struct Subject {
    kernel: Kernel,
    explainer: Option<Explainer>,
}

/// Fills a small table with open connections: flows that come later evict them.
fn fill(subject: &mut Subject, host: &Host) -> Result<(), TestCaseError> {
    for port in 2000..2024 {
        let client = SocketAddr::new(at(CLIENTS[0]).ip(), port);
        let segment = |flags| Spec { packet: PacketSpec::tcp(client, at(VIPS[0]), flags), damage: Damage::None };
        for flags in [0x02, 0x10] {
            // By tc: XDP leaves most answers to it.
            let sent = agree_on(subject, host, Program::TcIngress, &segment(flags))?.expect("sent on").frame;
            agree_on(subject, host, Program::TcEgress, &answer(&sent, Protocol::Tcp, flags | 0x10))?;
        }
    }
    Ok(())
}

/// Runs the same steps through the host and one loaded program.
fn agree(
    subject: &mut Subject,
    program: Program,
    rows: u32,
    steps: &[Step],
    seen: &mut Seen,
) -> Result<(), TestCaseError> {
    let now = subject.kernel.tick().expect("the clock");
    let mut host = Host::load_with_rows(scenario(program), now, rows);
    let maglev = host.scenario.maglev.clone();
    host.set_clocks([1 << 50; 2]);
    for address in ROUTED {
        let hop = NextHop::pack(OUT, 1500, mac(DMAC), mac(SMAC), 0);
        host.routes.borrow_mut().insert(address.parse().expect("an address"), hop);
    }
    subject.kernel.forget_flows().expect("forget");
    subject.kernel.fill(&host.scenario).expect("fill");
    subject.kernel.forget_held().expect("forget");
    let events_before = subject.kernel.all_events().expect("events");
    let traffic_before: Vec<_> =
        self::rows().map(|(service, colour)| subject.kernel.traffic(service, colour).expect("traffic")).collect();
    if rows < 100 {
        // That takes long to explain.
        let explainer = subject.explainer.take();
        let filled = fill(subject, &host);
        subject.explainer = explainer;
        filled?;
    }
    let mut sent: Option<(Vec<u8>, PacketSpec)> = None;
    for step in steps {
        match step {
            Step::Switch { deployment, ending } => {
                switches::switch(&host, &mut subject.kernel, *deployment, *ending);
            }
            Step::Freeze { deployment, is_over, queue } => {
                switches::freeze(&host, &mut subject.kernel, *deployment, *is_over, *queue);
            }
            Step::Health { service, colour, is_down } => {
                let table = host.scenario.tables(*service)[*colour as usize];
                switches::set_health(&mut host, &mut subject.kernel, &maglev, table, *is_down);
            }
            Step::Packet(spec) => sent = send(subject, &host, program, spec, seen)?.or(sent),
            Step::Stray(nth) => {
                let spec = stray(&mut host, &mut subject.kernel, &maglev, *nth);
                sent = send(subject, &host, program, &spec, seen)?.or(sent);
            }
            Step::Answer(flags) => {
                if let Some((sent, packet)) = &sent {
                    agree_on(subject, &host, program, &answer(sent, packet.protocol, *flags))?;
                }
            }
            // Where XDP is tested, no service has a mirror.
            Step::Copy(colour) => {
                if let Some((_, packet)) = sent.as_ref().filter(|_| program != Program::Xdp)
                    && let Some(copy) = agree_on_frame(subject, &host, Way::AsCopyFor(*colour), &packet.frame())?
                    && copy.frame != packet.frame()
                {
                    assert_checksums(&copy.frame);
                }
            }
            Step::Error(complaint) => {
                if let Some((sent, packet)) = &sent {
                    let bytes = frame(complaint.about(packet, sent).frame(), &complaint.damage, program);
                    let found = agree_on_frame(subject, &host, Way::By(program), &bytes)?;
                    seen.translated += u32::from(found.is_some_and(|found| found.frame != bytes));
                }
            }
        }
    }
    assert_eq!(subject.kernel.flows().expect("flows"), host.flows(), "flows");
    for deployment in 0..2 {
        assert_eq!(subject.kernel.word(deployment).expect("a word"), host.word(deployment));
        assert_eq!(subject.kernel.terms(deployment).expect("terms"), host.terms(deployment));
        // When a condition was met is told by each clock.
        let timeless = |timing: Timing| match Cause::from_u8(timing.cause) {
            Cause::Tripped => Timing { made_at: 0, ..timing },
            _ => timing,
        };
        let timings = subject.kernel.timings(deployment).expect("timings");
        assert_eq!(timings.map(timeless), host.timings(deployment).map(timeless));
        let counts = |trips: Trips| (trips.generation, trips.opened, trips.reset, trips.opened_since_heard);
        assert_eq!(subject.kernel.trips(deployment).expect("trips").map(counts), host.trips(deployment).map(counts));
    }
    let events = subject.kernel.all_events().expect("events");
    for event in Event::ALL {
        let row = event as usize;
        assert_eq!(events[row] - events_before[row], host.events(event), "{event:?}");
    }
    for ((service, colour), before) in self::rows().zip(traffic_before) {
        let (after, expected) =
            (subject.kernel.traffic(service, colour).expect("traffic"), host.traffic(service, colour));
        assert_eq!(after.packets - before.packets, expected.packets, "packets of {service} {colour}");
        assert_eq!(after.bytes - before.bytes, expected.bytes, "bytes of {service} {colour}");
        assert_eq!(after.flows_opened - before.flows_opened, expected.flows_opened, "flows of {service} {colour}");
        assert_eq!(after.mirrored - before.mirrored, expected.mirrored, "copies to {service} {colour}");
    }
    seen.count(&host.all_events());
    Ok(())
}

/// Runs a packet through both. Returns it with the frame that was sent on, if it was.
fn send(
    subject: &mut Subject,
    host: &Host,
    program: Program,
    spec: &Spec,
    seen: &mut Seen,
) -> Result<Option<(Vec<u8>, PacketSpec)>, TestCaseError> {
    let refused = host.events(Event::AllDown);
    let outcome = agree_on(subject, host, program, spec)?;
    let family = usize::from(spec.packet.to.is_ipv6());
    seen.refused[family] += u32::from(host.events(Event::AllDown) > refused);
    seen.left[family] += u32::from(outcome.is_some() && leaves_a_down_colour(host));
    let is_sent = |outcome: &Outcome| matches!(outcome.action, Action::Redirect | Action::Deliver);
    let sent =
        outcome.filter(|outcome| is_sent(outcome) && matches!(spec.damage, Damage::None) && !is_icmp(&outcome.frame));
    Ok(sent.map(|outcome| (outcome.frame, spec.packet.clone())))
}

/// Makes the changes of [`Step::Stray`]. Returns its segment.
fn stray(host: &mut Host, kernel: &mut Kernel, maglev: &[u32], nth: usize) -> Spec {
    let (service, deployment, client, vip) = STRAYS[nth];
    switches::switch(host, kernel, deployment, Ending::Drain);
    let live = host.word(deployment).live();
    for colour in Colour::ALL {
        let table = host.scenario.tables(service)[colour as usize];
        switches::set_health(host, kernel, maglev, table, colour == live);
    }
    Spec { packet: PacketSpec::tcp(at(client), at(vip), 0x10), damage: Damage::None }
}

/// Whether the last packet was given to another colour than its own, because all backends of that are down.
fn leaves_a_down_colour(host: &Host) -> bool {
    use bg_ebpf::step::Step;
    let (mut service, mut table, mut leaves) = (None, None, false);
    for step in host.notes() {
        match step {
            Step::Vip { row } => service = Some(row as usize / 2),
            Step::Live { colour, .. } => {
                table = service.map(|service| host.scenario.tables(service)[colour as usize]);
            }
            Step::SecondChance { .. } => leaves = true,
            _ => {}
        }
    }
    leaves && table.is_some_and(|table| host.scenario.maglev[table.base as usize] == NO_BACKEND)
}

fn rows() -> impl Iterator<Item = (u16, u8)> {
    (0..11).flat_map(|service| [(service, 0), (service, 1)])
}

fn cases() -> u32 {
    if std::env::var_os("BG_TEST_FULL").is_some() { 20_000 } else { 1_500 }
}

/// Compares a program with the engine on the host: by so many cases, and by more until each kind of event has happened. Agreement on
/// packets that nothing happens to would prove nothing.
fn compare(program: Program) {
    const ROUNDS: u32 = 6;
    // XDP leaves these to tc, which counts them.
    let of_tc = [
        Event::NextHopByStack,
        Event::TtlExpired,
        Event::EndedReset,
        Event::IdleNotReady,
        Event::Held,
        Event::Frozen,
        Event::MirrorAnswer,
        Event::MirrorLost,
    ];
    let of_both = [
        Event::Malformed,
        Event::ReplyCollision,
        Event::EndedFlow,
        Event::SecondChance,
        Event::PushedOut,
        Event::AllDown,
    ];
    let expected: Vec<Event> =
        of_both.into_iter().chain(of_tc.into_iter().filter(|_| program != Program::Xdp)).collect();
    let mut seen = Seen::default();
    for _ in 0..ROUNDS {
        compare_cases(program, cases(), false, &mut seen);
        // XDP leaves most errors to tc, too.
        let all_down = seen.refused.into_iter().chain(seen.left).all(|packets| packets > 0);
        if seen.translated > 20 && all_down && expected.iter().all(|event| seen.of(*event) > 0) {
            return;
        }
    }
    let never: Vec<_> = expected.iter().filter(|event| seen.of(**event) == 0).collect();
    panic!("{never:?} never happened, or too little of: {seen:?}");
}

/// The same, where each packet is explained before.
fn compare_explained(program: Program) {
    let cases = if std::env::var_os("BG_TEST_FULL").is_some() { 400 } else { 16 };
    let mut seen = Seen::default();
    compare_cases(program, cases, true, &mut seen);
    assert_ne!(seen.events, [0; Event::COUNT as usize], "nothing has happened");
}

/// What has happened in all cases.
#[derive(Debug, Default)]
struct Seen {
    events: [u64; Event::COUNT as usize],
    /// ICMP errors that were translated.
    translated: u32,
    /// Packets of each family that got nothing, because all backends of their colour are down.
    refused: [u32; 2],
    /// Packets of each family that got to the other colour then.
    left: [u32; 2],
}

impl Seen {
    fn of(&self, event: Event) -> u64 {
        self.events[event as usize]
    }

    fn count(&mut self, events: &[u64]) {
        self.events.iter_mut().zip(events).for_each(|(sum, count)| *sum += count);
    }
}

fn compare_cases(program: Program, cases: u32, explains: bool, seen: &mut Seen) {
    // This machine's routes lead somewhere, those of the host engine's world to two backends alone.
    // SAFETY: the namespace of this thread alone changes.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    lay_routes().expect("routes");
    let config = ProptestConfig { cases: cases / 2, failure_persistence: None, ..ProptestConfig::default() };
    let seen = RefCell::new(seen);
    // Flow tables with room for all, and tables of two buckets each.
    for rows in [4096, 16] {
        let mut kernel = Kernel::load(Sizes { rows, heads: Host::HEADS }).expect("load");
        let explainer = explains.then(|| Explainer::load(&mut kernel).expect("load"));
        let subject = RefCell::new(Subject { kernel, explainer });
        TestRunner::new(config.clone())
            .run(&steps(), |steps| {
                // A panic is what proptest shrinks from.
                agree(&mut subject.borrow_mut(), program, rows, &steps, &mut seen.borrow_mut())
            })
            .unwrap_or_else(|failure| panic!("{failure}"));
    }
}

#[test]
fn xdp_does_what_the_host_engine_does() {
    compare(Program::Xdp);
}

#[test]
fn tc_ingress_does_what_the_host_engine_does() {
    compare(Program::TcIngress);
}

#[test]
fn tc_egress_does_what_the_host_engine_does() {
    compare(Program::TcEgress);
}

#[test]
fn what_xdp_does_is_explained_without_a_trace() {
    compare_explained(Program::Xdp);
}

#[test]
fn what_tc_ingress_does_is_explained_without_a_trace() {
    compare_explained(Program::TcIngress);
}

#[test]
fn what_tc_egress_does_is_explained_without_a_trace() {
    compare_explained(Program::TcEgress);
}
