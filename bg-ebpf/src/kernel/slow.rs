//! The calls of the slow path, as global functions: the verifier looks at each once, whoever calls it.

use super::world::World;
use bg_common::{Family, Flow};
use bg_ebpf::{
    flow::memory::RawWords,
    path::{
        error,
        slow::{Answering, Copying, Opening, Receiver, Refreshing, Search, SlowPath, Translating, run},
    },
    policy::refusals::Refusal,
    wire::headers::{V4, V6},
};

/// The world of a function that needs neither packet nor hook.
const WORLD: World<true> = World { context: core::ptr::null_mut() };

/// What a call returns that was given no struct.
const NOTHING: u32 = u32::MAX;

macro_rules! calls {
    ($($function:ident($call:ty) = $engine:expr;)+) => {
        $(
            /// # Safety
            ///
            /// The call must be a reference, or null, which the verifier wants to see ruled out.
            #[unsafe(no_mangle)]
            #[inline(never)]
            unsafe extern "C" fn $function(call: *mut $call) -> u32 {
                if call.is_null() {
                    return NOTHING;
                }
                // SAFETY: the caller's reference.
                let call = unsafe { &mut *call };
                let run: fn(&mut $call, &World<true>) -> u32 = $engine;
                run(call, &WORLD)
            }
        )+
    };
}

macro_rules! calls_at_a_row {
    ($($function:ident($call:ty) = $engine:expr;)+) => {
        $(
            /// # Safety
            ///
            /// The call must be a reference, and the row the three words of a flow; or null, which the verifier wants to see
            /// ruled out.
            #[unsafe(no_mangle)]
            #[inline(never)]
            unsafe extern "C" fn $function(row: *mut Flow, call: *mut $call) -> u32 {
                if row.is_null() || call.is_null() {
                    return NOTHING;
                }
                // SAFETY: the caller's row, which is part of a map, and the caller's reference.
                let (row, call) = unsafe { (RawWords::new(row.cast()), &mut *call) };
                let run: fn(RawWords, &mut $call, &World<true>) -> u32 = $engine;
                run(row, call, &WORLD)
            }
        )+
    };
}

calls_at_a_row! {
    refresh(Refreshing) = |row, call, world| run::refresh(row, call, world) as u32;
    answer(Answering) = |row, call, world| run::answer(row, call, world) as u32;
    replace(Opening) = |row, call, world| run::replace(row, call, world) as u32;
}

calls! {
    remember(Refusal) = |refusal, world| { refusal.remember(world); 0 };
    choose_colour(Opening) = |call, world| run::choose_colour(call, world) as u32;
    count_for_switch(Opening) = |call, world| run::count_for_switch(call, world);
    choose_backend(Opening) = |call, world| run::choose_backend(call, world).to_u32();
    insert4(Opening) = |call, world| run::insert::<V4, _>(call, world) as u32;
    insert6(Opening) = |call, world| run::insert::<V6, _>(call, world) as u32;
    search4(Search) = |search, world| run::search::<V4, _>(search, world).to_u32();
    search6(Search) = |search, world| run::search::<V6, _>(search, world).to_u32();
    backend_of_copy(Copying) = |call, world| run::backend_of_copy(call, world);
    answers_copy4(Search) = |search, world| run::answers_copy::<V4, _>(search, world).to_u32();
    answers_copy6(Search) = |search, world| run::answers_copy::<V6, _>(search, world).to_u32();
    error_to_backend4(Translating) = |call, world| run::error_to_backend::<V4>(call, world) as u32;
    error_to_backend6(Translating) = |call, world| run::error_to_backend::<V6>(call, world) as u32;
    error_to_client4(Translating) = |call, world| run::error_to_client::<V4>(call, world) as u32;
    error_to_client6(Translating) = |call, world| run::error_to_client::<V6>(call, world) as u32;
}

macro_rules! slow_path {
    ($version:ty, $insert:ident, $search:ident, $answers_copy:ident, $error_to_backend:ident, $error_to_client:ident) => {
        impl<const XDP: bool> SlowPath<$version> for World<XDP> {
            #[inline(always)]
            fn refresh(&self, row: RawWords, call: &mut Refreshing) -> u32 {
                // SAFETY: a row and a reference.
                unsafe { refresh(row.as_ptr().cast(), call) }
            }

            #[inline(always)]
            fn answer(&self, row: RawWords, call: &mut Answering) -> u32 {
                // SAFETY: a row and a reference.
                unsafe { answer(row.as_ptr().cast(), call) }
            }

            #[inline(always)]
            fn remember(&self, refusal: &mut Refusal) -> u32 {
                // SAFETY: a reference.
                unsafe { remember(refusal) }
            }

            #[inline(always)]
            fn choose_colour(&self, call: &mut Opening) -> u32 {
                // SAFETY: a reference.
                unsafe { choose_colour(call) }
            }

            #[inline(always)]
            fn choose_backend(&self, call: &mut Opening) -> u32 {
                // SAFETY: a reference.
                unsafe { choose_backend(call) }
            }

            #[inline(always)]
            fn count_for_switch(&self, call: &mut Opening) -> u32 {
                // SAFETY: a reference.
                unsafe { count_for_switch(call) }
            }

            #[inline(always)]
            fn insert(&self, call: &mut Opening) -> u32 {
                // SAFETY: a reference.
                unsafe { $insert(call) }
            }

            #[inline(always)]
            fn replace(&self, row: RawWords, call: &mut Opening) -> u32 {
                // SAFETY: a row and a reference.
                unsafe { replace(row.as_ptr().cast(), call) }
            }

            #[inline(always)]
            fn search(&self, search: &mut Search) -> u32 {
                // SAFETY: a reference.
                unsafe { $search(search) }
            }

            #[inline(always)]
            fn backend_of_copy(&self, call: &mut Copying) -> u32 {
                // SAFETY: a reference.
                unsafe { backend_of_copy(call) }
            }

            #[inline(always)]
            fn answers_copy(&self, search: &mut Search) -> u32 {
                // SAFETY: a reference.
                unsafe { $answers_copy(search) }
            }

            #[inline(always)]
            fn error_to_backend(&self, call: &mut Translating) -> u32 {
                // SAFETY: a reference.
                unsafe { $error_to_backend(call) }
            }

            #[inline(always)]
            fn error_to_client(&self, call: &mut Translating) -> u32 {
                // SAFETY: a reference.
                unsafe { $error_to_client(call) }
            }
        }
    };
}

slow_path!(V4, insert4, search4, answers_copy4, error_to_backend4, error_to_client4);
slow_path!(V6, insert6, search6, answers_copy6, error_to_backend6, error_to_client6);

/// [`error::find`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn find_receiver(family: u32) -> u32 {
    let Some(family) = Family::from_u8(family as u8) else { return Receiver::None as u32 };
    error::find(family, &WORLD) as u32
}
