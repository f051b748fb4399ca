//! What Miri runs (`cargo xtask miri`): the smaller inputs that are kept, and threads at one flow table, in whatever order Miri chooses.

use bg_common::{Be16, Flow, FlowBackend, FlowHash, FlowKey4, FlowState};
use bg_ebpf::flow::{
    bucket::WAYS,
    key::{Key, Match},
    memory::{Memory, Words},
    table::{find, insert, replace},
};
use bg_fuzz::{corpus, target};
use std::{
    sync::atomic::{
        AtomicU64,
        Ordering::{Relaxed, SeqCst},
        fence,
    },
    thread,
};

/// A longer input takes Miri minutes.
const LONGEST: usize = 300;

#[test]
fn packets_of_the_corpus() {
    for name in ["parser", "unpacking", "forwards", "replies"] {
        let target = target(name).expect("a target");
        let inputs = corpus::inputs(target).expect("inputs");
        let small: Vec<_> = inputs.iter().filter(|(_, input)| input.len() <= LONGEST).collect();
        assert!(2 * small.len() > inputs.len(), "most inputs of {name} are too long");
        // All of the frames; of the scripts, which are many frames each, every other one.
        let step = if target.is_script { 2 } else { 1 };
        for (_, input) in small.into_iter().step_by(step) {
            (target.feed)(input);
        }
    }
}

/// Two buckets in atomics, as the map's memory is to CPUs.
struct Table(Vec<AtomicU64>);

const BUCKETS: usize = 2;

#[derive(Clone, Copy)]
struct Row<'a>(&'a [AtomicU64]);

impl Words for Row<'_> {
    fn from(self, words: usize) -> Self {
        Self(&self.0[words..])
    }

    fn load(self, word: usize) -> u64 {
        self.0[word].load(Relaxed)
    }

    fn store(self, word: usize, value: u64) {
        self.0[word].store(value, Relaxed);
    }

    fn store_low(self, word: usize, value: u32) {
        let with = |old: u64| Some(old & !0xffff_ffff | u64::from(value));
        let _ = self.0[word].fetch_update(Relaxed, Relaxed, with);
    }

    fn exchange(self, word: usize, old: u64, new: u64) -> bool {
        // BPF's are ordered after all that came before and before all that comes after, which these alone are not.
        fence(SeqCst);
        let exchanged = self.0[word].compare_exchange(old, new, SeqCst, SeqCst).is_ok();
        fence(SeqCst);
        exchanged
    }
}

impl<'a> Memory<FlowKey4> for &'a Table {
    type Words = Row<'a>;

    fn bucket(&self, index: u32) -> Option<Row<'a>> {
        let size = WAYS as usize * FlowKey4::ROW;
        self.0.get(index as usize * size..).filter(|rest| rest.len() >= size).map(Row)
    }

    fn mask(&self) -> u32 {
        BUCKETS as u32 - 1
    }

    fn hash_key(&self, index: usize) -> u64 {
        FlowHash::PUBLIC.0[index]
    }

    fn order(&self) {
        fence(SeqCst);
    }
}

const NOW: u32 = 1_000_000;

/// A flow whose parts all tell whose it is.
fn flow(key: &FlowKey4, value: u32) -> Flow {
    let mark = key.client << 8 | value;
    Flow {
        state: FlowState(FlowState::CONFIRMED | FlowState::ANSWERED).with_limit(1000),
        note: mark,
        backend: FlowBackend(mark),
        generation: mark,
        last_seen: NOW,
        ..Flow::default()
    }
}

fn check(key: &FlowKey4, found: &Flow) {
    let mark = found.backend.0;
    assert_eq!((found.generation, found.note), (mark, mark), "torn: {found:?}");
    assert_eq!(mark >> 8, key.client, "of another client: {found:?}");
}

/// More flows than there are places, so that they evict each other.
#[test]
fn threads_at_one_flow_table() {
    let table = Table((0..BUCKETS * WAYS as usize * FlowKey4::ROW).map(|_| AtomicU64::new(0)).collect());
    let keys: Vec<_> = (1..=20).map(|client| FlowKey4 { client, port: Be16::new(80), vip: 3 }).collect();
    thread::scope(|scope| {
        for cpu in 0..3_u32 {
            let (table, keys) = (&table, &keys);
            scope.spawn(move || {
                for (nth, key) in keys.iter().enumerate() {
                    let hash = key.hash(0, &table);
                    match find(&table, key, hash, Match::Whole) {
                        Some(there) => {
                            check(key, there.flow());
                            if nth % 3 == cpu as usize {
                                replace(&table, there, &flow(key, cpu + 1));
                            }
                        }
                        None => _ = insert(&table, key, hash, &flow(key, cpu + 1), NOW + cpu),
                    }
                    let other = &keys[(nth * 7 + cpu as usize) % keys.len()];
                    if let Some(there) = find(&table, other, other.hash(0, &table), Match::Whole) {
                        check(other, there.flow());
                    }
                }
            });
        }
    });
    let rows: Vec<u64> =
        table.0.chunks(FlowKey4::ROW).map(|row| row[0].load(Relaxed)).filter(|key| *key != 0).collect();
    assert!(rows.len() > WAYS as usize, "few flows are there");
    let found = keys.iter().filter(|key| find(&&table, *key, key.hash(0, &&table), Match::Whole).is_some()).count();
    assert!(found > WAYS as usize, "{found} flows are found");
}
