//! Sites and plans that do not go together: who is told what.

use std::path::Path;

use serde_json::Value;

use crate::stage::{Stage, TENSORS, consortia, errors, learner_table, plan, text, until, write_start};

const LOGISTIC: &str = "name = \"built-in\"\nrounds = 1\nmodel = \"logistic\"\n\
    [data.table]\nlabel = \"label\"\ntarget = { classes = 2 }\nfeatures = [\"age\"]\n\
    [training]\nbatch_size = 8\noptimizer = { sgd = { learning_rate = 0.05 } }\n\
    [cohort]\nclients_min = 1\nquorum = 1\nfailures_max = 1\n";
const DATA: &str = "[data.csv]\ntrain = \"data.csv\"\n";

/// What the operator is told of a run that the site declines, and what the site's own people are.
fn declined(stage: &Stage, plan: &str, site_tables: &str) -> (String, String) {
    std::fs::write(stage.path("north/data.csv"), "age,label\n51,0\n62,1\n47,0\n70,1\n").unwrap();
    stage.tell_site("north", site_tables);
    let site = stage.run_site("north", &[]);
    let run = stage.submit(plan, None);
    let end = consortia(&["run", "watch", &run, "--dir", stage.fed(), "--server", &stage.address]);
    assert_eq!(end.status.code(), Some(1));
    let mut said = String::new();
    until("the site declines", || {
        said += &site.lines.try_iter().map(|line| line.to_string()).collect::<String>();
        said.contains("declined").then_some(())
    });
    said += &site.errors.lock().unwrap();
    (errors(&end), said)
}

#[test]
fn a_site_that_cannot_do_a_plan_tells_its_people_why_and_the_server_that_it_cannot() {
    let stage = Stage::new(&["north"]);
    let player = |behaviour: &str| learner_table("learner", &[("BEHAVIOUR", behaviour)]);
    let outside = plan(1, 1, "");
    let cases = [
        (
            "other tensors",
            &*outside,
            player("has another model"),
            "the plan has w [2, 2], b [], a [3]; the learner has a [5], b [], w [2, 2]",
        ),
        ("another release", &outside, player("is of another release"), "speaks versions [7]"),
    ];
    for (name, plan, tables, told) in cases {
        let (end, said) = declined(&stage, plan, &tables);
        assert!(said.contains(told), "{name}: {said}");
        let heard =
            "north declined (unsupported): the learner does not support this plan; the site's log says why";
        assert!(end.contains(heard), "{name}: {end}");
        let heard = stage.servers_words();
        for word in ["[5]", "the learner has", "under `[", "versions [7]"] {
            assert!(!heard.contains(word), "{name}: the server has `{word}`");
        }
    }
}

#[test]
fn a_site_without_what_a_plan_needs_is_not_asked_and_the_operator_hears_what_is_missing() {
    let stage = Stage::new(&["north"]);
    std::fs::write(stage.path("north/data.csv"), "age,label\n51,0\n62,1\n47,0\n70,1\n").unwrap();
    let player = learner_table("learner", &[("BEHAVIOUR", "learns")]);
    let outside = plan(1, 1, "");
    let cases = [
        (
            &*outside,
            DATA.to_owned(),
            "does not know how to train external models; name a program for them under [learner]",
        ),
        (LOGISTIC, player, "name its records under [data]"),
    ];
    for (plan, tables, told) in cases {
        stage.tell_site("north", &tables);
        let site = stage.run_site("north", &[]);
        let run = stage.submit(plan, None);
        let end = consortia(&["run", "watch", &run, "--dir", stage.fed(), "--server", &stage.address]);
        assert!(end.status.code() == Some(1) && errors(&end).contains(told), "{}", errors(&end));
        let said: String = site.lines.try_iter().map(|line| line.to_string()).collect();
        assert!(!said.contains("declined") && !said.contains("started"), "{said}");
    }
}

/// What `site check --plan` finds: the state and message of each matter that is not in order, or that is about the learner.
fn check(stage: &Stage, plan: &Path) -> Vec<(String, String, String)> {
    let file = stage.site_file("north");
    let said =
        consortia(&["--format", "json", "site", "check", text(&file), "--plan", text(plan), "--offline"]);
    let found: Value = serde_json::from_slice(&said.stdout).unwrap_or_else(|_| panic!("{}", errors(&said)));
    let of = |matter: &Value, key: &str| matter[key].as_str().unwrap().to_owned();
    let matters = found["matters"].as_array().unwrap().iter();
    let matters = matters.map(|matter| (of(matter, "matter"), of(matter, "state"), of(matter, "message")));
    matters.filter(|(matter, state, _)| state == "fail" || matter.contains("learner")).collect()
}

#[test]
fn a_site_is_told_before_a_run_whether_its_learner_fits_the_plan() {
    let stage = Stage::new(&["north"]);
    std::fs::write(stage.path("north/data.csv"), "age,label\n51,0\n62,1\n47,0\n70,1\n").unwrap();
    let player = |behaviour: &str| learner_table("learner", &[("BEHAVIOUR", behaviour)]);
    let outside = stage.write_plan("outside.toml", &plan(1, 1, ""));
    let local = "[privacy.local]\nnoise_multiplier = 20.0\ndelta = 1e-5\nepsilon_max = 50.0\n";
    let local = stage.write_plan("local.toml", &plan(1, 1, local));
    let built_in = stage.write_plan("built-in.toml", LOGISTIC);
    let cases = [
        (&outside, player("learns"), "ok", "its model is the plan's: 3 tensors"),
        (&local, player("has another model"), "fail", "the learner has a [5]"),
        (&outside, player("has another model"), "fail", "the learner has a [5]"),
        (&outside, player("exits at once"), "fail", "exit status: 3"),
        (&outside, "[learner]\ncommand = [\"/no/such/program\"]\n".to_owned(), "fail", "cannot be started"),
        (&outside, DATA.to_owned(), "fail", "names no program for it: name one under [learner]"),
        (
            &built_in,
            player("learns"),
            "fail",
            "records that the site's file does not name: name them under [data]",
        ),
    ];
    for (plan, tables, state, told) in cases {
        stage.tell_site("north", &tables);
        let found = check(&stage, plan);
        assert!(
            found.iter().any(|(_, found, message)| found == state && message.contains(told)),
            "{told}: {found:?}"
        );
    }
    let examples =
        "[privacy.examples]\nnoise_multiplier = 1.0\nnorm_max = 1.0\ndelta = 1e-5\nepsilon_max = 9.0\n";
    let examples = stage.write_plan(
        "examples.toml",
        &plan(1, 1, examples).replace(
            "norm_max = 20.0\n",
            "norm_max = 20.0\nweights = \"uniform\"\n[training]\nbatch_size = 8\n",
        ),
    );
    stage.tell_site("north", &player("learns"));
    let found = check(&stage, &examples);
    assert!(found.iter().any(|(.., message)| message.contains("protects single records")), "{found:?}");
}

#[test]
fn a_model_is_evaluated_by_the_sites_own_program() {
    let stage = Stage::new(&["north"]);
    stage.tell_site("north", &learner_table("learner", &[("BEHAVIOUR", "learns")]));
    let plan = stage.write_plan("plan.toml", &plan(1, 1, ""));
    let (model, file) = (stage.path("start.safetensors"), stage.site_file("north"));
    let evaluate =
        || consortia(&["model", "evaluate", text(&model), "--plan", text(&plan), "--site", text(&file)]);
    let said = evaluate();
    let shown = String::from_utf8_lossy(&said.stdout);
    // Eight values of 0.25.
    assert_eq!(shown.trim(), "on 8 test records: loss 2.0000, accuracy 75.0 %", "{}", errors(&said));
    // What a script keeps at the site belongs to its model.
    let keeper = stage.run_with("north", &[("BEHAVIOUR", "keeps a head")]);
    stage.finish(&std::fs::read_to_string(&plan).unwrap(), None);
    drop(keeper);
    let said = evaluate();
    let shown = String::from_utf8_lossy(&said.stdout);
    // Its two values began with 0.5 and -0.5, and training has added 2 to each.
    assert_eq!(shown.trim(), "on 8 test records: loss 6.0000, accuracy 75.0 %", "{}", errors(&said));
    // Without a site there is nothing to evaluate on.
    let said = consortia(&["model", "evaluate", text(&model), "--plan", text(&plan)]);
    assert!(!said.status.success() && errors(&said).contains("--site"), "{}", errors(&said));
    // A model of other tensors is refused by name.
    let other = stage.path("other.safetensors");
    write_start(&other, &[TENSORS[0], ("c", &[1])], 0.5);
    let said = consortia(&["model", "evaluate", text(&other), "--plan", text(&plan), "--site", text(&file)]);
    assert!(!said.status.success() && errors(&said).contains("other.safetensors"), "{}", errors(&said));
}
