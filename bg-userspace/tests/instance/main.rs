//! Instances on the running kernel: their pins and links, and what their maps hold after each operation.
//! Each test has a network namespace and a pin root of its own.

mod any_way;
mod at_once;
mod by_itself;
mod completion;
mod control;
mod described;
mod doctor;
mod drains;
mod dry_run;
mod endings;
mod explain;
mod explained;
mod flow_map;
mod flows;
mod foreign;
mod hands;
mod index;
mod killed;
mod lab;
mod life;
mod lifecycle;
mod lost;
mod namespaces;
mod neighbours;
mod one_or_none;
mod pin_root;
mod show;
mod splits;
mod state;
mod status;
mod targets;
mod testers;
mod unrecorded;
mod view;
mod waiting;
