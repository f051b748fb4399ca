//! What is on the screen, and what keys do to it.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use bg_userspace::{DeploymentStatus, Paths, Status};
use ratatui::crossterm::event::{Event as Input, KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::{
    Event,
    change::{Change, Made, Question, Rehearsal, Task, Verb},
    rates::Rates,
    watch::{Look, Memory},
};

/// What the main thread does after an event.
#[derive(Debug)]
pub(super) enum Effect {
    None,
    /// End.
    Leave,
    /// End with this error.
    Break(&'static str),
    /// Start a thread for this.
    Start(Box<Task>),
    /// Look at the instance now.
    Look,
}

/// What lies over the picture.
#[derive(Debug, Default)]
pub(super) enum Dialog {
    #[default]
    None,
    Help,
    /// What a change would do is being found out.
    Rehearsing(Change),
    /// Whether to make the change.
    Asking(Box<Question>),
    /// The change is being made.
    Making(Change),
}

/// The result of a change, at the bottom of the screen.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Said {
    pub(super) text: String,
    pub(super) is_bad: bool,
}

/// The most flows that were seen on the idle colour since a change.
#[derive(Clone, Copy, Debug)]
pub(super) struct Most {
    generation: u32,
    pub(super) flows: u64,
}

/// What is on the screen.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) paths: Paths,
    pub(super) is_coloured: bool,
    /// The last status, and when it was taken.
    pub(super) status: Option<(Instant, Status)>,
    /// Why there is no newer one.
    pub(super) waits: Option<String>,
    pub(super) rates: Rates,
    pub(super) memory: Memory,
    pub(super) dialog: Dialog,
    pub(super) said: Option<Said>,
    /// Which deployment is chosen, by name: others may be added or removed.
    chosen: Option<String>,
    most: HashMap<String, Most>,
    /// The number of the last dialog, so that an answer to an earlier one is known.
    number: u64,
}

impl Model {
    pub(super) fn new(paths: Paths, is_coloured: bool) -> Self {
        Self {
            paths,
            is_coloured,
            status: None,
            waits: Some("looking".to_owned()),
            rates: Rates::default(),
            memory: Ok(HashMap::new()),
            dialog: Dialog::None,
            said: None,
            chosen: None,
            most: HashMap::new(),
            number: 0,
        }
    }

    /// The deployments, by name.
    pub(super) fn deployments(&self) -> &[DeploymentStatus] {
        self.status.as_ref().map_or(&[], |(_, status)| &status.deployments)
    }

    /// Which of them is chosen.
    pub(super) fn chosen(&self) -> usize {
        let is_chosen = |deployment: &DeploymentStatus| self.chosen.as_ref() == Some(&deployment.name);
        self.deployments().iter().position(is_chosen).unwrap_or(0)
    }

    /// The most flows that were on the idle colour of a deployment since its last change.
    pub(super) fn most(&self, deployment: &str) -> u64 {
        self.most.get(deployment).map_or(0, |most| most.flows)
    }

    /// How old the picture is, if that is worth a word.
    pub(super) fn age(&self) -> Option<Duration> {
        let age = self.status.as_ref().map(|(at, _)| at.elapsed());
        age.filter(|age| *age >= Duration::from_secs(3))
    }

    /// Takes an event into the picture.
    pub(super) fn take(&mut self, event: Event) -> Effect {
        match event {
            Event::Input(Input::Key(key)) if key.kind != KeyEventKind::Release => return self.key(key),
            Event::Input(_) => {}
            Event::InputEnded => return Effect::Leave,
            Event::Panicked => return Effect::Break("a thread has panicked, see above; this is an error in bgctl"),
            Event::Looked(look) => self.looked(*look),
            Event::Remembered(memory) => self.memory = memory,
            Event::Rehearsed(number, rehearsal) if number == self.number => self.rehearsed(rehearsal),
            // Somebody has left the dialog before the answer came.
            Event::Rehearsed(..) => {}
            Event::Made(number, made) => return self.made(number, made),
        }
        Effect::None
    }

    fn looked(&mut self, look: Look) {
        match look.status {
            Ok(status) => {
                self.rates.take(look.at, &status, look.is_new);
                self.measure_drains(&status);
                self.waits = None;
                self.status = Some((look.at, status));
                // What is chosen stays chosen, also while it is first in the list by chance.
                self.chosen = self.deployments().get(self.chosen()).map(|deployment| deployment.name.clone());
            }
            Err(why) => {
                self.waits = Some(why);
                self.status = None;
                self.rates = Rates::default();
                if matches!(self.dialog, Dialog::Asking(_)) {
                    self.dialog = Dialog::None;
                }
            }
        }
    }

    fn measure_drains(&mut self, status: &Status) {
        self.most.retain(|name, _| status.deployments.iter().any(|deployment| deployment.name == *name));
        for DeploymentStatus { name, generation, idle, flows, .. } in &status.deployments {
            let now = if *idle == "blue" { flows.blue } else { flows.green };
            let begun = Most { generation: *generation, flows: now };
            let most = self.most.entry(name.clone()).or_insert(begun);
            *most = if most.generation == *generation { Most { flows: most.flows.max(now), ..*most } } else { begun };
        }
    }

    fn rehearsed(&mut self, rehearsal: Rehearsal) {
        let Dialog::Rehearsing(change) = &self.dialog else { return };
        let (verb, name) = (change.verb.name(), change.deployment.clone());
        self.dialog = match rehearsal {
            Ok(question) => Dialog::Asking(Box::new(question)),
            Err(why) => {
                self.said = Some(Said { text: format!("{name}: no {verb}: {why}"), is_bad: true });
                Dialog::None
            }
        };
    }

    fn made(&mut self, number: u64, made: Made) -> Effect {
        if number == self.number {
            self.dialog = Dialog::None;
        }
        self.said = Some(match made {
            Ok(text) => Said { text, is_bad: false },
            Err(text) => Said { text: format!("refused or failed: {text}"), is_bad: true },
        });
        Effect::Look
    }

    fn key(&mut self, key: KeyEvent) -> Effect {
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return if key.code == KeyCode::Char('c') { Effect::Leave } else { Effect::None };
        }
        match (&self.dialog, key.code) {
            (Dialog::None, code) => self.main_key(code),
            (Dialog::Asking(_), KeyCode::Char('y')) => self.make(),
            (Dialog::Making(_), _) => {
                let text = "a change is being made; Ctrl-C leaves without waiting for its result".to_owned();
                self.said = Some(Said { text, is_bad: false });
                Effect::None
            }
            (Dialog::Help, _) | (_, KeyCode::Esc | KeyCode::Char('n' | 'q')) => {
                self.number += 1;
                self.dialog = Dialog::None;
                Effect::None
            }
            _ => Effect::None,
        }
    }

    fn main_key(&mut self, code: KeyCode) -> Effect {
        let count = self.deployments().len();
        let page = 10;
        match code {
            KeyCode::Char('q') => return Effect::Leave,
            KeyCode::Char('?' | 'h') => self.dialog = Dialog::Help,
            KeyCode::Up | KeyCode::Char('k') => self.choose(self.chosen().saturating_sub(1)),
            KeyCode::Down | KeyCode::Char('j') => self.choose(self.chosen() + 1),
            KeyCode::PageUp => self.choose(self.chosen().saturating_sub(page)),
            KeyCode::PageDown => self.choose(self.chosen() + page),
            KeyCode::Home => self.choose(0),
            KeyCode::End => self.choose(count),
            KeyCode::Char('s') => return self.ask(Verb::Switch),
            KeyCode::Char('r') => return self.ask(Verb::Rollback),
            KeyCode::Char('c') => return self.ask(Verb::Confirm),
            KeyCode::Char('f') => return self.ask(Verb::Freeze),
            KeyCode::Char('t') => return self.ask(Verb::Thaw),
            _ => {}
        }
        Effect::None
    }

    fn choose(&mut self, nth: usize) {
        let nth = nth.min(self.deployments().len().saturating_sub(1));
        self.chosen = self.deployments().get(nth).map(|deployment| deployment.name.clone());
    }

    /// Finds out what a change of the chosen deployment would do.
    fn ask(&mut self, verb: Verb) -> Effect {
        let Some(deployment) = self.deployments().get(self.chosen()) else { return Effect::None };
        let change = Change { verb, deployment: deployment.name.clone(), generation: deployment.generation };
        self.number += 1;
        self.said = None;
        self.dialog = Dialog::Rehearsing(change.clone());
        Effect::Start(Box::new(Task::Rehearse(self.number, self.paths.clone(), change)))
    }

    /// Makes the change that was asked about.
    fn make(&mut self) -> Effect {
        match std::mem::take(&mut self.dialog) {
            Dialog::Asking(question) => {
                self.dialog = Dialog::Making(question.change.clone());
                Effect::Start(Box::new(Task::Make(self.number, self.paths.clone(), *question)))
            }
            other => {
                self.dialog = other;
                Effect::None
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use bg_userspace::{
        ByColour, ColourStatus, ServiceStatus,
        config::{DivideBy, OnSwitch},
    };

    use super::*;

    /// A status with one deployment, whose flows of each colour are as many as it has opened.
    pub(in super::super) fn status_with(name: &str, [blue, green]: [u64; 2]) -> Status {
        let colour = |flows_opened| ColourStatus { flows_opened, ..ColourStatus::default() };
        let service = ServiceStatus {
            name: "web".to_owned(),
            vip: "203.0.113.10:443".parse().unwrap(),
            protocol: "tcp",
            mode: "nat",
            preview: None,
            mirror: None,
            listen: None,
            colours: ByColour { blue: colour(blue), green: colour(green) },
        };
        let deployment = DeploymentStatus {
            name: name.to_owned(),
            live: "blue",
            idle: "green",
            previous: "green",
            generation: 4,
            phase: "steady",
            green_share: 0.0,
            green_share_measured: None,
            divide_by: DivideBy::Flow,
            confirm_deadline: None,
            revert_if: Vec::new(),
            taken_back: None,
            pending: None,
            frozen_until: None,
            held: 0,
            on_switch: OnSwitch::Drain,
            drain_timeout: None,
            drain_deadline: None,
            testers: Vec::new(),
            flows: ByColour { blue, green },
            services: vec![service],
        };
        Status {
            deployments: vec![deployment],
            interfaces: Vec::new(),
            drops: Default::default(),
            events: Default::default(),
        }
    }

    fn looked(names: &[&str]) -> Event {
        let deployments = names.iter().flat_map(|name| status_with(name, [1, 1]).deployments).collect();
        let status = Ok(Status { deployments, ..status_with("", [0, 0]) });
        Event::Looked(Box::new(Look { at: Instant::now(), status, is_new: false }))
    }

    pub(in super::super) fn model_of(names: &[&str]) -> Model {
        let mut model = Model::new(Paths::default(), true);
        model.take(looked(names));
        model
    }

    pub(in super::super) fn press(model: &mut Model, code: KeyCode) -> Effect {
        model.take(Event::Input(Input::Key(code.into())))
    }

    #[track_caller]
    fn rehearsal(effect: Effect) -> (u64, Change) {
        let Effect::Start(task) = effect else { panic!("{effect:?}") };
        let Task::Rehearse(number, _, change) = *task else { panic!("{task:?}") };
        (number, change)
    }

    #[test]
    fn what_is_chosen_stays_chosen_when_others_come_and_go() {
        let mut model = model_of(&["mail", "shop"]);
        press(&mut model, KeyCode::Down);
        model.take(looked(&["a", "b", "mail", "shop"]));
        assert_eq!(model.chosen(), 3);
        model.take(looked(&["shop"]));
        assert_eq!(model.chosen(), 0);
        press(&mut model, KeyCode::Down);
        assert_eq!(model.chosen(), 0, "the list ends there");
        // The first one, as long as nobody has moved.
        let mut model = model_of(&["mail", "shop"]);
        model.take(looked(&["a", "mail", "shop"]));
        assert_eq!(model.chosen(), 1);
    }

    #[test]
    fn a_change_is_of_the_chosen_deployment_and_the_generation_on_the_screen() {
        let mut model = model_of(&["mail", "shop"]);
        press(&mut model, KeyCode::Down);
        let (_, change) = rehearsal(press(&mut model, KeyCode::Char('s')));
        assert_eq!(change, Change { verb: Verb::Switch, deployment: "shop".to_owned(), generation: 4 });
        assert!(matches!(press(&mut model, KeyCode::Char('y')), Effect::None), "nothing was asked yet");
    }

    #[test]
    fn an_answer_to_a_dialog_that_was_left_asks_nothing() {
        let mut model = model_of(&["mail"]);
        let (number, change) = rehearsal(press(&mut model, KeyCode::Char('s')));
        press(&mut model, KeyCode::Esc);
        model.take(Event::Rehearsed(number, Ok(Question::of(change.clone()))));
        assert!(matches!(model.dialog, Dialog::None));
        press(&mut model, KeyCode::Char('r'));
        model.take(Event::Rehearsed(number, Ok(Question::of(change))));
        assert!(matches!(model.dialog, Dialog::Rehearsing(_)), "that was the answer to another question");
    }

    #[test]
    fn nothing_but_y_makes_a_change() {
        for code in [KeyCode::Enter, KeyCode::Char(' '), KeyCode::Char('s'), KeyCode::Esc, KeyCode::Char('n')] {
            let mut model = model_of(&["mail"]);
            let (number, change) = rehearsal(press(&mut model, KeyCode::Char('s')));
            model.take(Event::Rehearsed(number, Ok(Question::of(change))));
            assert!(matches!(press(&mut model, code), Effect::None), "{code:?}");
            let is_left = matches!(code, KeyCode::Esc | KeyCode::Char('n'));
            assert_eq!(matches!(model.dialog, Dialog::None), is_left, "{code:?}");
            if !is_left {
                assert!(
                    matches!(press(&mut model, KeyCode::Char('y')), Effect::Start(task) if matches!(*task, Task::Make(..)))
                );
            }
        }
    }

    #[test]
    fn a_question_about_an_instance_that_is_gone_is_withdrawn() {
        let mut model = model_of(&["mail"]);
        let (number, change) = rehearsal(press(&mut model, KeyCode::Char('s')));
        model.take(Event::Rehearsed(number, Ok(Question::of(change))));
        let status = Err("no instance".to_owned());
        model.take(Event::Looked(Box::new(Look { at: Instant::now(), status, is_new: true })));
        assert!(matches!(press(&mut model, KeyCode::Char('y')), Effect::None));
        assert!(model.deployments().is_empty() && model.waits.is_some());
    }
}
