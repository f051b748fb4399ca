//! The calls of the slow path, as global functions: the verifier looks at each once, whoever calls it.

use super::{
    flows::{Flows4, Flows6},
    world::World,
};
use bg_common::{Family, Flow};
use bg_ebpf::{
    flow::{memory::RawWords, table::survey_at},
    path::{
        error, relay,
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
    leave_down_colour(Opening) = |call, world| run::leave_down_colour(call, world);
    count_for_switch(Opening) = |call, world| run::count_for_switch(call, world);
    choose_backend4(Opening) = |call, world| run::choose_backend::<V4>(call, world).to_u32();
    choose_backend6(Opening) = |call, world| run::choose_backend::<V6>(call, world).to_u32();
    choose_row4(Opening) = |call, world| run::choose_row::<V4>(call, world);
    choose_row6(Opening) = |call, world| run::choose_row::<V6>(call, world);
    insert4(Opening) = |call, world| run::insert::<V4, _>(call, world) as u32;
    insert6(Opening) = |call, world| run::insert::<V6, _>(call, world) as u32;
    search4(Search) = |search, world| run::search::<V4>(search, world);
    search6(Search) = |search, world| run::search::<V6>(search, world);
    search_step4(Search) = |search, world| run::search_step::<V4, _>(search, world).to_u32();
    search_step6(Search) = |search, world| run::search_step::<V6, _>(search, world).to_u32();
    backend_of_copy4(Copying) = |call, world| run::backend_of_copy::<V4>(call, world);
    backend_of_copy6(Copying) = |call, world| run::backend_of_copy::<V6>(call, world);
    answers_copy4(Search) = |search, world| run::answers_copy::<V4>(search, world);
    answers_copy6(Search) = |search, world| run::answers_copy::<V6>(search, world);
    answers_copy_step4(Search) = |search, world| run::answers_copy_step::<V4, _>(search, world).to_u32();
    answers_copy_step6(Search) = |search, world| run::answers_copy_step::<V6, _>(search, world).to_u32();
    error_to_backend4(Translating) = |call, world| run::error_to_backend::<V4>(call, world) as u32;
    error_to_backend6(Translating) = |call, world| run::error_to_backend::<V6>(call, world) as u32;
    error_to_client4(Translating) = |call, world| run::error_to_client::<V4>(call, world) as u32;
    error_to_client6(Translating) = |call, world| run::error_to_client::<V6>(call, world) as u32;
}

/// [`survey_at`] of IPv4 flows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn survey4(bucket: u32, hash: u32, now: u32, generation: u32) -> u64 {
    survey_at(&Flows4, bucket, hash, now, generation).to_u64()
}

/// The same of IPv6 flows.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn survey6(bucket: u32, hash: u32, now: u32, generation: u32) -> u64 {
    survey_at(&Flows6, bucket, hash, now, generation).to_u64()
}

macro_rules! slow_path {
    ($version:ty, $survey:ident { $($method:ident = $function:ident($call:ty),)+ }) => {
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
            fn replace(&self, row: RawWords, call: &mut Opening) -> u32 {
                // SAFETY: a row and a reference.
                unsafe { replace(row.as_ptr().cast(), call) }
            }

            #[inline(always)]
            fn survey(&self, bucket: u32, hash: u32, now: u32, generation: u32) -> u64 {
                $survey(bucket, hash, now, generation)
            }

            $(
                #[inline(always)]
                fn $method(&self, call: &mut $call) -> u32 {
                    // SAFETY: a reference.
                    unsafe { $function(call) }
                }
            )+
        }
    };
}

slow_path!(V4, survey4 {
    remember = remember(Refusal),
    choose_colour = choose_colour(Opening),
    leave_down_colour = leave_down_colour(Opening),
    choose_backend = choose_backend4(Opening),
    count_for_switch = count_for_switch(Opening),
    choose_row = choose_row4(Opening),
    insert = insert4(Opening),
    search = search4(Search),
    search_step = search_step4(Search),
    backend_of_copy = backend_of_copy4(Copying),
    answers_copy = answers_copy4(Search),
    answers_copy_step = answers_copy_step4(Search),
    error_to_backend = error_to_backend4(Translating),
    error_to_client = error_to_client4(Translating),
});
slow_path!(V6, survey6 {
    remember = remember(Refusal),
    choose_colour = choose_colour(Opening),
    leave_down_colour = leave_down_colour(Opening),
    choose_backend = choose_backend6(Opening),
    count_for_switch = count_for_switch(Opening),
    choose_row = choose_row6(Opening),
    insert = insert6(Opening),
    search = search6(Search),
    search_step = search_step6(Search),
    backend_of_copy = backend_of_copy6(Copying),
    answers_copy = answers_copy6(Search),
    answers_copy_step = answers_copy_step6(Search),
    error_to_backend = error_to_backend6(Translating),
    error_to_client = error_to_client6(Translating),
});

/// [`relay::find`]. Zero: `None`.
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn find_relayed() -> u32 {
    relay::find(&WORLD).is_some().into()
}

/// [`error::find`].
#[unsafe(no_mangle)]
#[inline(never)]
pub(super) extern "C" fn find_receiver(family: u32) -> u32 {
    let Some(family) = Family::from_u8(family as u8) else { return Receiver::None as u32 };
    error::find(family, &WORLD) as u32
}
