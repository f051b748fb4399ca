//! The model: its state, its actions and what must always hold.

use crate::{
    claim::REPRIEVE,
    command::{Command, Outcome},
    fault::Fault,
    forget::forget,
    memory::{Known, Shared, duration},
    mutation::Mutation,
    packet, process,
    run::{Came, Run, Setting},
    trips,
};
use bg_common::{Colour, FULL_SHARE};
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

/// Commands that some operators give at any time, in any order, while packets come by.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// One for each process.
    pub commands: Vec<Command>,
    pub cpus: usize,
    /// The last moment.
    pub horizon: u64,
    /// So often a process may be killed.
    pub kills: usize,
    /// Whether only confirmations are killed, and given again then.
    pub repeats: bool,
    /// The colours of which flows may be reset.
    pub fails: Vec<Colour>,
    pub mutation: Option<Mutation>,
}

/// A process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Process {
    /// Between two of its steps: the answers to those so far.
    Running(Vec<u64>),
    Returned(Outcome),
    Killed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct State {
    pub(crate) shared: Shared,
    pub(crate) processes: Vec<Process>,
    /// How many were killed.
    pub(crate) killed: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Time goes on.
    Wait,
    /// A packet comes by, or goes on.
    Packet(usize),
    /// One comes by that resets a flow which counts for the conditions of this generation.
    Reset(usize, u32),
    /// A process makes its next step.
    Process(usize),
    /// A process is killed.
    Kill(usize),
}

impl Protocol {
    /// Visits all states. Panics at a fault, with the way to it, and if something that must be possible is not.
    pub fn assert_holds(self, must_be_possible: &[&'static str]) {
        let (commands, fails) = (self.commands.clone(), self.fails.clone());
        let checker =
            self.machine(None).checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        if let Some(path) = checker.discovery(NO_FAULT) {
            panic!("{}", told(path));
        }
        println!("{} states: {:?}, conditions at {:?}", checker.unique_state_count(), commands, fails);
        for name in must_be_possible {
            assert!(checker.discovery(name).is_some(), "{name} never happens");
        }
    }

    /// Panics unless a fault can happen.
    pub fn assert_fails(self, by: Fault) {
        let mutation = self.mutation;
        let machine = self.machine(Some(by));
        let checker = machine.checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        assert!(checker.discovery(NO_FAULT).is_some(), "{mutation:?} leads to no {by:?}");
    }

    fn machine(self, expected: Option<Fault>) -> Machine {
        let watches = self.commands.iter().any(|command| command.has_conditions());
        let fails = Colour::ALL.map(|colour| self.fails.contains(&colour));
        let setting = Setting { mutation: self.mutation, fails, watches };
        Machine { protocol: self, setting, expected }
    }

    fn may_wait(&self, shared: &Shared) -> bool {
        let next = shared.now + 1;
        let packets_may = shared.packets.iter().flatten().all(|packet| next - packet.began <= packet::LONGEST);
        let process_may = shared.urgent_since.is_none_or(|since| next - since + packet::LONGEST < REPRIEVE / 2);
        next <= self.horizon && packets_may && process_may
    }
}

/// The protocol as stateright sees it.
struct Machine {
    protocol: Protocol,
    setting: Setting,
    /// The only fault that counts, if there is one.
    expected: Option<Fault>,
}

impl Machine {
    fn is(&self, mutation: Mutation) -> bool {
        self.setting.mutation == Some(mutation)
    }
}

/// The first generation that a command makes.
const FIRST: usize = 3;
const NO_FAULT: &str = "no fault";

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let processes = self.protocol.commands.iter().map(|_| Process::Running(Vec::new())).collect();
        let shared = Shared::new(self.protocol.cpus, self.setting.watches);
        vec![State { shared, processes, killed: 0 }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.shared.fault.is_some() {
            return;
        }
        if self.protocol.may_wait(&state.shared) {
            actions.push(Action::Wait);
        }
        let packets = &state.shared.packets;
        let is_first = |cpu: usize| cpu == 0 || packets[cpu - 1] != packets[cpu];
        actions.extend((0..packets.len()).filter(|cpu| is_first(*cpu)).map(Action::Packet));
        if self.setting.watches && packets.first().is_some_and(Option::is_none) {
            let resets = trips::may_answer(&state.shared, self.setting.fails);
            actions.extend(resets.map(|of| Action::Reset(0, of)));
        }
        let has_to_wait = |past: &[u64]| past.is_empty() && state.shared.lock.is_some() && !self.is(Mutation::NoLock);
        for (index, process) in state.processes.iter().enumerate() {
            let Process::Running(past) = process else { continue };
            if !has_to_wait(past) {
                actions.push(Action::Process(index));
            }
            let may_be_killed = !self.protocol.repeats || self.protocol.commands[index] == Command::Confirm;
            if may_be_killed && !past.is_empty() && state.killed < self.protocol.kills {
                actions.push(Action::Kill(index));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let State { shared, processes, killed } = &mut state;
        match action {
            Action::Wait => shared.now += 1,
            Action::Packet(cpu) => {
                packet::step(shared, cpu, None, self.setting);
            }
            Action::Reset(cpu, of) => {
                packet::step(shared, cpu, Some(of), self.setting);
            }
            Action::Kill(process) => {
                processes[process] = if self.protocol.repeats { Process::Running(Vec::new()) } else { Process::Killed };
                *killed += 1;
                (shared.lock, shared.urgent_since) = (None, None);
                shared.packets.iter_mut().flatten().for_each(|packet| packet.is_awaited = false);
            }
            Action::Process(index) => {
                let Process::Running(past) = &processes[index] else { return None };
                let command = self.protocol.commands[index];
                let came = Run::make(shared, past, self.setting, |run| process::program(run, index, command));
                processes[index] = match came {
                    Came::Blocked => return None,
                    Came::On(past) => Process::Running(past),
                    Came::Ended(outcome) => {
                        process::returned(shared, command, outcome);
                        Process::Returned(outcome)
                    }
                };
            }
        }
        shared.check_timing();
        packet::excuse(shared);
        forget(shared);
        // All CPUs are alike.
        shared.packets.sort();
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        fn is_any(state: &State, is: impl Fn(&Known) -> bool) -> bool {
            state.shared.known.iter().skip(FIRST).any(is)
        }
        vec![
            Property::always(NO_FAULT, |machine: &Self, state: &State| {
                let fault = state.shared.fault;
                fault.is_none() || machine.expected.is_some_and(|expected| fault != Some(expected))
            }),
            Property::sometimes("kept", |_, state| is_any(state, |known| known.is_kept)),
            Property::sometimes("taken back", |_, state| is_any(state, |known| known.is_taken_back)),
            Property::sometimes("tripped", |_, state| is_any(state, |known| known.is_tripped)),
            Property::sometimes("cancelled", |_, state| is_any(state, |known| known.is_cancelled)),
            Property::sometimes("too late", |_, state: &State| {
                state.processes.iter().any(|process| matches!(process, Process::Returned(Outcome::TooLate { .. })))
            }),
            Property::sometimes("all returned", |_, state: &State| {
                state.processes.iter().all(|process| matches!(process, Process::Returned(_)))
            }),
            Property::sometimes("moved", |_, state: &State| !matches!(state.shared.ramped.1, 0 | FULL_SHARE)),
        ]
    }
}

/// A way to a state: what was there before each action.
fn told(path: Path<State, Action>) -> String {
    let line = |(state, action): (State, Option<Action>)| {
        let State { shared, processes, .. } = state;
        let (word, [even, odd]) = (shared.memory.live(), [0, 1].map(|slot| shared.memory.timing(slot)));
        let instants = [even, odd].map(|timing| [timing.activate_at, timing.revert_at].map(|at| at / duration(1)));
        let (generation, flags, share) = (word.generation(), word.flags().0, word.target_share());
        let packets: Vec<_> =
            shared.packets.iter().map(|packet| packet.as_ref().map(|packet| packet.past.len())).collect();
        let processes: Vec<_> = processes
            .iter()
            .map(|process| match process {
                Process::Running(past) => format!("{} answers", past.len()),
                ended => format!("{ended:?}"),
            })
            .collect();
        let now = shared.now + 1;
        let trips = shared.memory.trips;
        let fault = shared.fault.map(|fault| format!(" {fault:?}!")).unwrap_or_default();
        format!(
            "{now}: {generation} {flags:04b} {share} {instants:?} {trips:?} {packets:?} {processes:?} {action:?}{fault}\n"
        )
    };
    path.into_vec().into_iter().map(line).collect()
}
