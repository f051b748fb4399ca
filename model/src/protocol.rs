//! The model: its state, its actions and what must always hold.

use crate::{
    command::{self, Command, Outcome, REPRIEVE},
    memory::{Fault, Shared, duration},
    mutation::Mutation,
    packet,
    run::{Came, Run},
};
use bg_common::FULL_SHARE;
use stateright::{Checker, HasDiscoveries, Model, Path, Property};

/// Commands that some operators give at any time, in any order, while packets come by.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// One for each process.
    pub commands: Vec<Command>,
    pub cpus: usize,
    /// The last moment.
    pub horizon: u64,
    /// Processes that may be killed.
    pub kills: usize,
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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// Time goes on.
    Wait,
    /// A packet comes by, or goes on.
    Packet(usize),
    /// A process makes its next step.
    Process(usize),
    /// A process is killed.
    Kill(usize),
}

impl Protocol {
    /// Visits all states. Panics at a fault, with the way to it, and if something that must be possible is not.
    pub fn assert_holds(self, must_be_possible: &[&'static str]) {
        let checker = Machine(self).checker().threads(2).finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
        for (name, path) in checker.discoveries() {
            assert!(
                POSSIBLE.contains(&name),
                "{name}:
{}",
                told(path)
            );
        }
        for name in must_be_possible {
            assert!(checker.discovery(name).is_some(), "{name} never happens");
        }
    }

    /// Panics unless a fault can happen.
    pub fn assert_fails(self, by: Fault) {
        let mutation = self.mutation;
        let expected = HasDiscoveries::AnyOf([by.name()].into());
        let checker = Machine(self).checker().threads(2).finish_when(expected).spawn_bfs().join();
        assert!(checker.discovery(by.name()).is_some(), "{mutation:?} leads to no {by:?}");
    }

    fn may_wait(&self, shared: &Shared) -> bool {
        let next = shared.now + 1;
        let packets_may = shared.packets.iter().flatten().all(|packet| next - packet.began <= packet::LONGEST);
        let process_may = shared.urgent_since.is_none_or(|since| next - since + packet::LONGEST < REPRIEVE / 2);
        next <= self.horizon && packets_may && process_may
    }
}

/// The protocol as stateright sees it.
struct Machine(Protocol);

impl Model for Machine {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let processes = self.0.commands.iter().map(|_| Process::Running(Vec::new())).collect();
        vec![State { shared: Shared::new(self.0.cpus), processes }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.shared.fault.is_some() {
            return;
        }
        if self.0.may_wait(&state.shared) {
            actions.push(Action::Wait);
        }
        let packets = &state.shared.packets;
        // All CPUs are alike.
        let is_first = |cpu: usize| cpu == 0 || packets[cpu - 1] != packets[cpu];
        actions.extend((0..packets.len()).filter(|cpu| is_first(*cpu)).map(Action::Packet));
        let killed = state.processes.iter().filter(|process| **process == Process::Killed).count();
        for (index, process) in state.processes.iter().enumerate() {
            let Process::Running(past) = process else { continue };
            actions.push(Action::Process(index));
            if !past.is_empty() && killed < self.0.kills {
                actions.push(Action::Kill(index));
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let State { shared, processes } = &mut state;
        match action {
            Action::Wait => shared.now += 1,
            Action::Packet(cpu) => {
                packet::step(shared, cpu, self.0.mutation);
                shared.packets.sort();
            }
            Action::Kill(process) => {
                processes[process] = Process::Killed;
                (shared.lock, shared.urgent_since) = (None, None);
                shared.packets.iter_mut().flatten().for_each(|packet| packet.is_awaited = false);
                shared.packets.sort();
            }
            Action::Process(index) => {
                let Process::Running(past) = &processes[index] else { return None };
                let command = self.0.commands[index];
                let came = Run::make(shared, past, self.0.mutation, |run| command::program(run, index, command));
                processes[index] = match came {
                    Came::Blocked => return None,
                    Came::On(past) => Process::Running(past),
                    Came::Ended(outcome) => {
                        command::returned(shared, command, outcome);
                        Process::Returned(outcome)
                    }
                };
                shared.packets.sort();
            }
        }
        Some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        macro_rules! never {
            ($($fault:ident),*) => {
                [$(Property::always(Fault::$fault.name(), |_, state: &State| state.shared.fault != Some(Fault::$fault))),*]
            };
        }
        let mut properties = Vec::from(never![
            ForeignTerms,
            WentBack,
            TwoOutcomes,
            NotTakenBack,
            OldWord,
            NotGuarded,
            LeftArmed,
            OffSchedule,
            Uncancelled,
            Shrank,
            NotHeld,
            HeldTooLong
        ]);
        properties.extend([
            Property::sometimes("kept", |_, state: &State| state.shared.known.iter().any(|known| known.is_kept)),
            Property::sometimes("taken back", |_, state: &State| {
                state.shared.known.iter().any(|known| known.is_expired)
            }),
            Property::sometimes("cancelled", |_, state: &State| {
                state.shared.known.iter().any(|known| known.is_cancelled)
            }),
            Property::sometimes("too late", |_, state: &State| {
                state.processes.iter().any(|process| matches!(process, Process::Returned(Outcome::TooLate { .. })))
            }),
            Property::sometimes("all returned", |_, state: &State| {
                state.processes.iter().all(|process| matches!(process, Process::Returned(_)))
            }),
            Property::sometimes("moved", |_, state: &State| !matches!(state.shared.ramped.1, 0 | FULL_SHARE)),
        ]);
        properties
    }
}

/// A way to a state: what was there before each action.
fn told(path: Path<State, Action>) -> String {
    let line = |(state, action): (State, Option<Action>)| {
        let State { shared, processes } = state;
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
        format!("{now}: {generation} {flags:04b} {share} {instants:?} {packets:?} {processes:?} {action:?}\n")
    };
    path.into_vec().into_iter().map(line).collect()
}

/// What is looked for only because the model would show little without it.
const POSSIBLE: [&str; 6] = ["kept", "taken back", "cancelled", "too late", "all returned", "moved"];
