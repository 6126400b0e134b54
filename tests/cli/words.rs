//! What needs no server: usage, help, configuration, completions.

use std::process::Stdio;

use super::{Home, said};

const COMMANDS: [&[&str]; 25] = [
    &["serve"],
    &["run"],
    &["up"],
    &["ls"],
    &["show"],
    &["logs"],
    &["extend"],
    &["snapshot"],
    &["stop"],
    &["usage"],
    &["machines", "create"],
    &["machines", "ls"],
    &["machines", "show"],
    &["machines", "update"],
    &["machines", "delete"],
    &["machines", "versions"],
    &["keys", "create"],
    &["keys", "ls"],
    &["keys", "revoke"],
    &["share", "create"],
    &["share", "ls"],
    &["share", "revoke"],
    &["share", "token"],
    &["doctor"],
    &["completions"],
];

#[test]
fn every_command_explains_itself_with_an_example() {
    let home = Home::new();
    for command in COMMANDS {
        let words: Vec<_> = command.iter().copied().chain(["--help"]).collect();
        let help = said(&mut home.dwell(&words));
        assert_eq!(help.code, Some(0), "{words:?}");
        assert!(
            help.stdout.contains("Example"),
            "{words:?}: {}",
            help.stdout
        );
        assert!(help.stdout.contains("dwell "), "{words:?}");
    }
    let version = said(&mut home.dwell(&["--version"]));
    assert_eq!(
        version.stdout,
        format!("dwell {}\n", env!("CARGO_PKG_VERSION"))
    );
}

#[test]
fn wrong_usage_is_exit_code_2_and_says_what_is_wrong() {
    let home = Home::new();
    for (words, hint) in [
        (&["frobnicate"][..], "frobnicate"),
        (&[][..], "Usage"),
        (&["run"], "CMD"),
        (&["run", "--timeout", "0", "--", "app"], "--timeout"),
        (&["run", "--env", "nothing", "--", "app"], "NAME=value"),
        (&["run", "--port", "70000", "--", "app"], "--port"),
        (&["extend", "abc", "0"], "MIN"),
        (&["extend", "abc"], "MIN"),
        (&["stop"], "IDS"),
        (&["serve", "--listen", "8080"], "127.0.0.1:8080"),
        (&["serve", "--session-ports", "300-200"], "empty"),
        (&["serve", "--session-host", "http://h"], "without scheme"),
        (&["machines", "create", "--name", "lab"], "--command"),
        (&["keys", "create"], "--user"),
        (&["usage", "--since", "yesterday"], "2026-11-23"),
        (&["completions", "cobol"], "cobol"),
    ] {
        let said = said(&mut home.dwell(words));
        assert_eq!(said.code, Some(2), "{words:?}: {said:?}");
        assert!(said.stderr.contains(hint), "{words:?}: {}", said.stderr);
        assert_eq!(said.stdout, "", "{words:?}");
    }
}

#[test]
fn a_mistake_in_the_config_file_is_one_line_with_file_line_and_key() {
    let home = Home::new();
    let file = home.path("dwell.toml");
    for (text, expected) in [
        (
            "# ours\n\nlissten = \"127.0.0.1:0\"\n",
            "error: dwell.toml:3: unknown key \"lissten\" (did you mean \"listen\"?)\n",
        ),
        (
            "[prices]\n\"A10G\" = -1\n",
            "error: dwell.toml:2: prices.A10G: must be a number from 0 to 1000000; -1 is not\n",
        ),
        (
            "[[launcher]]\nkind = \"slrm\"\n",
            "error: dwell.toml:2: launcher.kind: there is no launcher \"slrm\"; use \"local\", \"docker\", \"podman\", \"slurm\" or \"kubernetes\"\n",
        ),
    ] {
        std::fs::write(&file, text).unwrap();
        let said = said(&mut home.dwell(&["serve", "--config", "dwell.toml"]));
        assert_eq!(said.stderr, expected);
        assert_eq!(said.code, Some(1));
    }
    let said = said(home.dwell(&["serve"]).env("DWELL_CONFIG", "nowhere.toml"));
    assert_eq!(said.code, Some(1));
    assert!(said.stderr.contains("nowhere.toml"), "{}", said.stderr);
}

#[test]
fn a_store_that_cannot_be_had_is_refused_in_a_sentence() {
    let home = Home::new();
    for (words, hint) in [
        (
            ["serve", "--store", "postgres://ann@127.0.0.1:1/dwell"],
            "postgres://ann@127.0.0.1:1/dwell cannot be reached",
        ),
        (["serve", "--store", "paper"], "there is no store \"paper\""),
    ] {
        let said = said(&mut home.dwell(&words));
        assert_eq!(said.code, Some(1), "{words:?}");
        assert!(said.stderr.contains(hint), "{words:?}: {}", said.stderr);
        assert_eq!(said.stderr.lines().count(), 1, "{}", said.stderr);
    }
}

#[test]
fn a_log_filter_that_is_not_understood_is_refused() {
    let home = Home::new();
    let said = said(home.dwell(&["serve"]).env("DWELL_LOG", "dwell=loud=er"));
    assert_eq!(said.code, Some(1));
    assert!(
        said.stderr.starts_with("error: DWELL_LOG"),
        "{}",
        said.stderr
    );
}

#[test]
fn each_shell_has_completions() {
    let home = Home::new();
    for (shell, mark) in [
        ("bash", "complete "),
        ("zsh", "#compdef dwell"),
        ("fish", "complete -c dwell"),
    ] {
        let said = said(&mut home.dwell(&["completions", shell]));
        assert_eq!(said.code, Some(0));
        assert!(said.stdout.contains(mark), "{shell}");
        assert!(said.stdout.contains("snapshot"), "{shell}");
    }
}

#[test]
fn a_reader_that_stops_reading_is_no_failure() {
    let home = Home::new();
    let mut command = home.dwell(&["completions", "bash"]);
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");
}

#[test]
fn the_agent_is_reached_before_anything_else() {
    let home = Home::new();
    let said = said(&mut home.dwell(&["agent"]));
    assert_eq!(said.code, Some(2));
    assert!(said.stderr.contains("dwell agent DIR"), "{}", said.stderr);
}

#[test]
fn the_doctor_finds_something_about_everything() {
    let home = Home::new();
    let told = said(
        home.dwell(&["doctor", "--json"])
            .env("DOCKER_HOST", "unix:///none"),
    );
    let findings: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    let checks: Vec<_> = findings
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["check"].as_str().unwrap())
        .collect();
    assert_eq!(
        checks,
        [
            "data directory",
            "disk space",
            "store",
            "server",
            "GPUs",
            "PID namespaces",
            "cgroups",
            "containers",
            "open files"
        ]
    );
    let plain = said(&mut home.dwell(&["doctor"]));
    assert!(plain.stdout.contains("open files"), "{}", plain.stdout);

    std::fs::write(home.path("file"), "").unwrap();
    let failed = said(&mut home.dwell(&["doctor", "--data-dir", "file/data"]));
    assert_eq!(failed.code, Some(1), "{failed:?}");
    assert!(failed.stdout.contains("FAIL"), "{}", failed.stdout);
}

#[test]
fn the_doctor_looks_at_what_the_config_names() {
    let home = Home::new();
    let engine = format!("unix://{}", home.path("engine.sock").display());
    let doctor = |config: &str| {
        std::fs::write(home.path("dwell.toml"), config).unwrap();
        let told = said(&mut home.dwell(&["doctor", "--config", "dwell.toml", "--json"]));
        let findings: Vec<serde_json::Value> = serde_json::from_str(&told.stdout).unwrap();
        (told.code, findings)
    };
    let named = |findings: &[serde_json::Value], check: &str| {
        let finding = findings.iter().find(|finding| finding["check"] == check);
        finding.unwrap().clone()
    };
    let launcher = format!("[[launcher]]\nkind = \"docker\"\nhost = \"{engine}\"\n");
    let (code, findings) = doctor(&format!("data_dir = \"there\"\n{launcher}"));
    assert_eq!(code, Some(1), "{findings:?}");
    assert_eq!(named(&findings, "config")["verdict"], "ok");
    let dir = named(&findings, "data directory");
    assert!(dir["found"].as_str().unwrap().contains("there"), "{dir}");
    let containers = named(&findings, "containers");
    assert_eq!(containers["verdict"], "fail");
    let sentence = format!("The container engine at {engine} does not answer (");
    let found = containers["found"].as_str().unwrap();
    assert!(found.starts_with(&sentence), "{found}");
    assert!(
        containers["remedy"]
            .as_str()
            .unwrap()
            .starts_with("start it")
    );

    let launcher = "[[launcher]]\nkind = \"slurm\"\ngpus = { L4 = \"gpu:l4\" }\n\
                    slurmrestd = \"unix:///nowhere/slurmrestd.socket\"\n";
    let (code, findings) = doctor(launcher);
    assert_eq!(code, Some(1), "{findings:?}");
    let cluster = named(&findings, "cluster");
    assert_eq!(cluster["verdict"], "fail");
    let found = cluster["found"].as_str().unwrap();
    let begins = "slurm cannot be asked (slurmrestd at /nowhere/slurmrestd.socket: ";
    assert!(found.starts_with(begins), "{found}");

    let (code, findings) = doctor("lisen = \"x\"\n");
    assert_eq!(code, Some(1), "{findings:?}");
    let config = named(&findings, "config");
    assert!(
        config["found"].as_str().unwrap().contains("dwell.toml:1: "),
        "{config}"
    );
}
