//! The calls of the slow path, as global functions: the verifier looks at each once, whoever calls it.

use super::world::World;
use bg_ebpf::{
    flow::table::store,
    path::slow::{Answering, Locating, Opening, Refreshing, SlowPath, run},
    wire::headers::{V4, V6},
    world::Flows as _,
};

/// The world of a function that needs neither packet nor hook.
const WORLD: World<true> = World { context: core::ptr::null_mut() };

macro_rules! calls {
    ($version:ty, $($name:ident($call:ident): $function:ident = $engine:expr),+ $(,)?) => {
        $(
            /// # Safety
            ///
            /// The call must be a reference, or null, which the verifier wants to see ruled out.
            #[unsafe(no_mangle)]
            #[inline(never)]
            unsafe extern "C" fn $function(call: *mut $call<$version>) -> u32 {
                if call.is_null() {
                    return u32::MAX;
                }
                // SAFETY: the caller's reference.
                let call = unsafe { &mut *call };
                let run: fn(&mut $call<$version>, &World<true>) -> u32 = $engine;
                run(call, &WORLD)
            }
        )+

        impl<const XDP: bool> SlowPath<$version> for World<XDP> {
            $(
                #[inline(always)]
                fn $name(&self, call: &mut $call<$version>) -> u32 {
                    // SAFETY: a reference.
                    unsafe { $function(call) }
                }
            )+
        }
    };
}

calls!(V4,
    refresh(Refreshing): refresh4 = |call, world| run::refresh(call, world) as u32,
    choose_colour(Opening): choose_colour4 = |call, world| run::choose_colour(call, world) as u32,
    choose_backend(Opening): choose_backend4 = |call, world| run::choose_backend(call, world).to_u32(),
    find_rival(Opening): find_rival4 = |call, world| run::find_rival(call, world).to_u32(),
    store(Opening): store4 = |call, world| {
        store(V4::flows(world), &call.key, call.hash, &call.flow, call.is_known, call.now) as u32
    },
    answer(Answering): answer4 = |call, world| run::answer(call, world) as u32,
    locate(Locating): locate4 = |call, world| run::locate(call, world).to_u32(),
);
calls!(V6,
    refresh(Refreshing): refresh6 = |call, world| run::refresh(call, world) as u32,
    choose_colour(Opening): choose_colour6 = |call, world| run::choose_colour(call, world) as u32,
    choose_backend(Opening): choose_backend6 = |call, world| run::choose_backend(call, world).to_u32(),
    find_rival(Opening): find_rival6 = |call, world| run::find_rival(call, world).to_u32(),
    store(Opening): store6 = |call, world| {
        store(V6::flows(world), &call.key, call.hash, &call.flow, call.is_known, call.now) as u32
    },
    answer(Answering): answer6 = |call, world| run::answer(call, world) as u32,
    locate(Locating): locate6 = |call, world| run::locate(call, world).to_u32(),
);
