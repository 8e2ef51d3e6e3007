//! What a learner finds around it, and how one that somebody else starts gets in.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::LEARNER;
use crate::stage::{Stage, plan, until};

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn a_learner_finds_nothing_of_its_sites_identity_policy_and_state() {
    let stage = Stage::new(&["north"]);
    stage.tell_site(
        "north",
        &crate::stage::learner_table("learner", &[("BEHAVIOUR", "tells its surroundings")]),
    );
    let site = stage.run_site("north", &[("SECRET_OF_THE_AGENT", "hunter2".to_owned())]);
    stage.finish(&plan(1, 1, ""), None);
    let folder = stage.path("north/learner").canonicalize().unwrap();
    assert_eq!(mode(&folder), 0o700);
    let told: Value =
        serde_json::from_slice(&std::fs::read(folder.join("surroundings.json")).unwrap()).unwrap();
    let of = |key: &str| -> Vec<&str> {
        told[key].as_array().unwrap().iter().map(|one| one.as_str().unwrap()).collect()
    };
    let mut names: Vec<&str> = of("environment").iter().map(|one| one.split('=').next().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["BEHAVIOUR", "CONSORTIA_LEARNER", "HOME", "LANG", "PATH", "PYTHONUNBUFFERED"]);
    assert!(of("environment").contains(&&*format!("HOME={}", folder.display())), "{told}");
    assert_eq!((told["folder"].as_str().unwrap(), of("beside").len()), (folder.to_str().unwrap(), 0));
    // No file of the site or of the agent is open, whatever its number.
    let site_folder = stage.path("north").canonicalize().unwrap();
    for open in of("open") {
        let (_, target) = open.split_once(' ').unwrap();
        assert!(!target.starts_with(site_folder.to_str().unwrap()), "{open}");
        assert!(!target.contains("hunter2"), "{open}");
    }
    assert_eq!(of("open").iter().filter(|open| open.contains(" socket:")).count(), 3, "{told}");
    drop(site);
}

/// A learner that somebody starts who has read this file.
fn attach(file: &Path, behaviour: &str) -> Child {
    let mut learner = Command::new(std::env::current_exe().unwrap());
    learner
        .args([LEARNER, "--exact", "--nocapture"])
        .env("CONSORTIA_LEARNER", file)
        .env("BEHAVIOUR", behaviour);
    learner.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[test]
fn a_token_lets_one_learner_in_and_none_after_it() {
    let stage = Stage::new(&["north"]);
    stage.tell_site(
        "north",
        "[learner]\nattach = true\nstart_seconds = 60\nsilent_seconds = 2\nend_seconds = 1\n",
    );
    let site = stage.run_site("north", &[]);
    let run = stage.submit(&plan(2, 1, ""), None);
    let file = stage.path("north/learner/attach.json");
    until("there is nothing to attach by", || file.exists().then_some(()));
    assert_eq!((mode(&file), mode(file.parent().unwrap())), (0o600, 0o700));
    // Nobody comes in by a token that is none.
    assert_eq!(attach(&file, "has a wrong token").wait().unwrap().code(), Some(1));
    let (used, first) = (stage.path("used.json"), std::fs::read(&file).unwrap());
    std::fs::write(&used, &first).unwrap();
    let mut learner = attach(&file, "learns");
    assert_eq!(stage.end_of(&run)["state"], "finished");
    assert_ne!(std::fs::read(&file).unwrap(), first);
    learner.kill().unwrap();
    learner.wait().unwrap();
    // The next task waits for another learner.
    let run = stage.submit(&plan(1, 1, ""), None);
    assert_eq!(attach(&used, "learns").wait().unwrap().code(), Some(1));
    let mut learner = attach(&file, "learns");
    assert_eq!(stage.end_of(&run)["state"], "finished");
    // An agent that ends tells the learner, which is not its own, and leaves nothing to attach by.
    let mut site = site;
    drop(site.child.stdin.take());
    site.child.wait().unwrap();
    assert!(learner.wait().unwrap().success() && !file.exists());
}
