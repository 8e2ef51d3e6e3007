//! Reads arbitrary text as a federation.toml and as a plan in JSON. Nothing may panic; a plan that is accepted keeps its
//! meaning when it travels, and an error's place lies in the text.
#![no_main]

use libfuzzer_sys::fuzz_target;
use protocol::Spec;
use server::Plan;

fuzz_target!(|text: &str| {
    match Plan::parse(text) {
        Ok(plan) => assert_eq!(Spec::from_json(&plan.spec.to_json()).as_ref(), Ok(&*plan.spec)),
        Err(error) => assert!(error.line >= 1 && error.line <= text.matches('\n').count() + 1),
    }
    let _ = Spec::from_json(text);
});
