//! README's way to one file: deploy/static.sh and what is typed after it, with this build in the place of the one that takes minutes.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "tests may panic")]

#[path = "transcripts/page.rs"]
mod page;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};

use page::{Kind, blocks, is_output};

/// What `cargo build` is here: it brings the program to where the real one would, and complains of other arguments.
const CARGO: &str = r#"#!/bin/bash
[[ "$*" == "build --profile dist --locked --package consortia-cli --bin consortia --target "* ]] || exit 9
[[ "$RUSTFLAGS" == *crt-static* ]] || exit 8
mkdir -p "target/${*: -1}/dist" && cp "$BUILT" "target/${*: -1}/dist/consortia"
"#;

fn write_program(path: &Path, text: &str) {
    fs::write(path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A clone as far as the script looks at it, with a `cargo` and a `readelf` that take no time.
fn clone(readelf: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["bin", "deploy", "installed"] {
        fs::create_dir(folder.path().join(name)).unwrap();
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/static.sh");
    fs::copy(script, folder.path().join("deploy/static.sh")).unwrap();
    write_program(&folder.path().join("bin/cargo"), CARGO);
    write_program(&folder.path().join("bin/readelf"), readelf);
    folder
}

fn typed(folder: &Path, command: &str) -> Output {
    let path = format!("{0}/bin:{0}/installed:{1}", folder.display(), std::env::var("PATH").unwrap());
    let mut shell = Command::new("bash");
    shell.current_dir(folder).env("PATH", path).env("BUILT", env!("CARGO_BIN_EXE_consortia"));
    shell.env_remove("CARGO_TARGET_DIR").arg("-c").arg(format!("exec 2>&1; {command}")).output().unwrap()
}

#[test]
fn readme_s_way_to_one_file_is_as_it_says() {
    let folder = clone("#!/bin/sh\n");
    let page = include_str!("../README.md").replace("x86_64", std::env::consts::ARCH);
    let blocks = blocks(&page);
    let way = blocks
        .iter()
        .find(|block| matches!(block.kind, Kind::NotRun(why) if why.contains("tests/package.rs")));
    // It is one session in one shell: a `cd` holds for what follows.
    let mut before = String::new();
    for step in way.unwrap().steps() {
        let command =
            step.command.replace("/usr/local/bin", &folder.path().join("installed").display().to_string());
        let output = typed(folder.path(), &format!("{before}{command}"));
        let said = String::from_utf8(output.stdout).unwrap();
        let lines: Vec<&str> = said.lines().collect();
        assert!(output.status.success() && is_output(&step.output, &lines), "`{command}` said {said}");
        if command.starts_with("cd ") {
            before = format!("{} && ", command.split(" && ").next().unwrap());
        }
    }
    // A second build replaces the first, and the list stays whole.
    assert!(
        typed(folder.path(), "deploy/static.sh && cd target/out && sha256sum --check SHA256SUMS")
            .status
            .success()
    );
    fs::write(folder.path().join("target/out/SHA256SUMS"), "0  consortia\n").unwrap();
    assert!(!typed(folder.path(), "cd target/out && sha256sum --check SHA256SUMS").status.success());
}

#[test]
fn a_program_that_asks_for_a_library_is_not_handed_out() {
    let folder = clone("#!/bin/sh\necho ' (NEEDED) Shared library: [libc.so.6]'\n");
    let output = typed(folder.path(), "deploy/static.sh");
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(!output.status.success() && said.contains("asks for a library"), "{said}");
    assert!(!folder.path().join("target/out").exists());
}
