use dwell_core::pricing::HourlyRate;
use dwell_core::time::Millis;

use super::*;

fn read(text: &str) -> Result<Config, String> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dwell.toml");
    std::fs::write(&file, text).unwrap();
    Config::load(Some(&file), Flags::default()).map_err(|error| {
        let prefix = format!("{}/", dir.path().display());
        error.to_string().replace(&prefix, "")
    })
}

fn refusal(text: &str) -> String {
    read(text).expect_err("it should be refused")
}

#[test]
fn an_unknown_key_is_refused_by_file_line_and_name() {
    assert_eq!(
        refusal("\n\nlissten = \"127.0.0.1:1\"\n"),
        "dwell.toml:3: unknown key \"lissten\" (did you mean \"listen\"?)"
    );
    assert_eq!(
        refusal("[limits]\nstart_minuts = 3\n"),
        "dwell.toml:2: unknown key \"start_minuts\" in [limits] (did you mean \"start_minutes\"?)"
    );
    assert_eq!(
        refusal("[session]\nzz = 3\n"),
        "dwell.toml:2: unknown key \"zz\" in [session]; known are: memory_mib, pids_max, log_mib"
    );
}

#[test]
fn a_value_that_does_not_fit_is_refused_by_line_key_and_value() {
    for (text, sentence) in [
        (
            "[limits]\n\nsessions_per_machine = 0",
            "dwell.toml:3: limits.sessions_per_machine: must be a whole number from 1 to 10000000; 0 is not",
        ),
        (
            "[limits]\nstart_minutes = \"ten\"",
            "dwell.toml:2: limits.start_minutes: must be a number from 0.001 to 1440; \"ten\" is not",
        ),
        (
            "[prices]\n\"A10G\" = -1.5",
            "dwell.toml:2: prices.A10G: must be a number from 0 to 1000000; -1.5 is not",
        ),
        (
            "session_ports = \"300-200\"",
            "dwell.toml:1: session_ports: the range 300-200 is empty; the lower port goes first",
        ),
        (
            "listen = 8080",
            "dwell.toml:1: listen: must be a text in quotes; 8080 is not",
        ),
        (
            "listen = \"8080\"",
            "dwell.toml:1: listen: \"8080\" is no address with a port; write it like 127.0.0.1:8080",
        ),
        (
            "session_host = \"http://gpu\"",
            "dwell.toml:1: session_host: \"http://gpu\" is no host; write a name or an address, without scheme and port",
        ),
        (
            "limits = 3",
            "dwell.toml:1: limits: must be a table; 3 is not",
        ),
        (
            "[gpus]\nA10G = 1.5",
            "dwell.toml:2: gpus.A10G: must be a whole number from 0 to 10000; 1.5 is not",
        ),
        (
            "access = \"public\"",
            "dwell.toml:1: access: \"public\" is neither \"link\" nor \"private\"",
        ),
        (
            "[limits]\nheartbeat_seconds = 30",
            "dwell.toml:1: [limits]: heartbeat_seconds (30 s) must be below relaunch_after_seconds (25 s), and that below lost_after_seconds (1 min)",
        ),
        (
            "listen = \"127.0.0.1:20001\"",
            "listen: port 20001 lies within session_ports 20000-29999; choose another for one of them",
        ),
    ] {
        assert_eq!(refusal(text), sentence);
    }
    assert!(refusal("a = \n").starts_with("dwell.toml:1: "));
    assert!(refusal("listen = \"a\"\nlisten = \"b\"\n").starts_with("dwell.toml:2: "));
}

#[test]
fn clusters_are_asked_in_the_order_of_the_file_and_this_host_if_it_is_named() {
    const SLURM: &str = "[[launcher]]\nkind = \"slurm\"\npartition = \"gpu\"\n\
                         gpus = { A10G = \"gpu:a10g\" }\n";
    const KUBERNETES: &str = "[[launcher]]\nkind = \"kubernetes\"\nimage = \"app:1\"\n\
                              gpus = { L4 = \"nvidia.com/gpu\" }\n\
                              [launcher.pod.spec]\ntolerations = [{ key = \"gpu\" }]\n";
    let names = |text: &str| -> Vec<String> {
        let places = read(text).unwrap().places;
        let name = |place: &PlaceConfig| match place {
            PlaceConfig::Host => "host".to_owned(),
            PlaceConfig::Cluster(cluster) => cluster.settings.name.0.clone(),
        };
        places.iter().map(name).collect()
    };
    assert_eq!(names(""), ["host"]);
    assert_eq!(names(SLURM), ["slurm"]);
    let local = "[[launcher]]\nkind = \"local\"\n";
    let docker = "[[launcher]]\nkind = \"docker\"\n";
    let all = [local, SLURM, docker, KUBERNETES].concat();
    assert_eq!(names(&all), ["host", "slurm", "kubernetes"]);
    let again = [SLURM, SLURM].concat();
    let twice = refusal(&again);
    assert!(
        twice.contains("there is a launcher \"slurm\" already"),
        "{twice}"
    );
    assert_eq!(
        names(
            &[
                SLURM,
                "[[launcher]]\nname = \"far\"",
                &SLURM["[[launcher]]".len()..]
            ]
            .concat()
        ),
        ["slurm", "far"]
    );
    for (line, says) in [
        ("gpus = {}", "must say which types of GPU"),
        ("gpus = { A10G = \"\" }", "must be the engine's word"),
        (
            "name = \"a b\"",
            "is no name of letters, digits and hyphens",
        ),
        ("server_url = \"gpu\"", "is no server's address"),
        ("server_certificate = \"missing.pem\"", "cannot be read"),
        (
            "containers = \"docker\"",
            "is neither \"pyxis\" nor \"apptainer\"",
        ),
        ("partitions = \"a\"", "did you mean \"partition\"?"),
        ("token_file = \"jwt\"", "which are for slurmrestd"),
        ("slurmrestd = \"10.0.0.1\"", "is no server's address"),
        ("slurmrestd = \"unix:run\"", "is no server's address"),
        (
            "slurmrestd = \"http://s:6820\"\noptions = [\"--x\"]",
            "is of sbatch",
        ),
        (
            "slurmrestd = \"http://s:6820\"\ncontainers = \"pyxis\"",
            "set containers = \"apptainer\"",
        ),
        (
            "slurmrestd = \"http://s:6820\"\njob = \"x\"",
            "must be a table",
        ),
        (
            "slurmrestd = \"http://s:6820\"\njob = { name = \"x\" }",
            "name is not to be set",
        ),
        (
            "slurmrestd = \"http://s:6820\"\nslurmrestd_certificate = \"ca.pem\"",
            "is not asked over https",
        ),
    ] {
        let gpus = if line.starts_with("gpus") {
            ""
        } else {
            "gpus = { A = \"b\" }\n"
        };
        let sentence = refusal(&format!("[[launcher]]\nkind = \"slurm\"\n{gpus}{line}\n"));
        assert!(sentence.contains(says), "{line}: {sentence}");
    }
}

#[test]
fn a_container_engine_that_is_wrong_is_refused_with_a_sentence() {
    let engine = |line: &str| format!("[[launcher]]\nkind = \"docker\"\n{line}\n");
    for (line, says) in [
        ("host = \"tcp://gpu:2375\"", "is no socket of this host"),
        (
            "network = \"a b\"",
            "is no name of letters, digits and hyphens",
        ),
        ("subnets = \"10.0.0.0/8\"", "is no /16 of addresses"),
        (
            "gpus = \"all\"",
            "is neither \"cdi\" nor \"device-requests\"",
        ),
        (
            "[[launcher]]\nkind = \"podman\"",
            "is a second container engine",
        ),
    ] {
        let sentence = refusal(&engine(line));
        assert!(sentence.contains(says), "{sentence}");
    }
    let both = engine("host = \"unix:///run/e.sock\"\ncpus = 1.5\n[[launcher]]\nkind = \"local\"");
    let settings = read(&both).unwrap().launcher.engine.unwrap();
    assert_eq!(settings.host, "unix:///run/e.sock");
    assert_eq!(settings.cpu_millis, Some(1_500));
    assert!(refusal("[[launcher]]\n").contains("must have a kind"));
    assert!(read("store = \"sqlite\"\n[[launcher]]\nkind = \"local\"").is_ok());
}

#[test]
fn a_store_is_sqlite_or_a_postgres_database_and_its_password_is_never_shown() {
    assert_eq!(read("").unwrap().store, StoreAt::DataDir);
    let with = |url: &str| Flags {
        store: Some(url.into()),
        ..Flags::default()
    };
    let config = Config::load(None, with("postgres://ann:secret@db/dwell")).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("postgres://ann@db:5432/dwell"), "{shown}");
    assert!(!shown.contains("secret"), "{shown}");
    for wrong in ["postgres://ann:secret@db:x/dwell", "mysql://ann:secret@db"] {
        let by_flag = Config::load(None, with(wrong)).unwrap_err().to_string();
        assert!(by_flag.starts_with("--store: "), "{by_flag}");
        let by_file = refusal(&format!("store = \"{wrong}\""));
        assert!(by_file.starts_with("dwell.toml:1: store: "), "{by_file}");
        assert!(!(by_flag + &by_file).contains("secret"));
    }
    assert!(refusal("store = \"paper\"").contains("there is no store \"paper\""));
}

#[test]
fn a_domain_is_a_name_or_what_visitors_reach_in_front_of_the_server() {
    let domain = |name: &str, origin: Option<(Scheme, u16)>| Domain {
        name: name.to_owned(),
        origin: origin.map(|(scheme, port)| Origin { scheme, port }),
    };
    for (text, expected) in [
        ("gpu.example.com", domain("gpu.example.com", None)),
        ("localhost", domain("localhost", None)),
        (
            "https://GPU.example.com",
            domain("gpu.example.com", Some((Scheme::Https, 443))),
        ),
        (
            "http://gpu.lab:8000",
            domain("gpu.lab", Some((Scheme::Http, 8000))),
        ),
    ] {
        assert_eq!(parse_domain(text), Ok(expected), "{text}");
    }
    for text in [
        "",
        "gpu.example.com:443",
        "*.example.com",
        "10.0.0.1",
        "https://",
        "ftp://gpu.lab",
        "-a.lab",
        "a..lab",
        "u@gpu.lab",
        "gpu.lab/x",
    ] {
        assert!(parse_domain(text).is_err(), "{text}");
    }
}

#[test]
fn a_certificate_and_its_key_are_named_together() {
    let config = read("domain = \"gpu.lab\"\n[tls]\ncertificate = \"c.pem\"\nkey = \"k.pem\"");
    let config = config.unwrap();
    assert_eq!(config.domain.unwrap().name, "gpu.lab");
    assert!(config.tls.unwrap().key.ends_with("k.pem"));
    assert!(refusal("[tls]\nkey = \"k.pem\"").contains("no certificate"));
    assert!(refusal("[tls]\ncertificate = \"c.pem\"").contains("no key"));
    assert!(refusal("[tls]\nacme = true").contains("acme"));
}

#[test]
fn acme_is_for_the_names_that_are_listed_and_goes_with_where_sessions_are() {
    let config = read("[acme]\nnames = [\"GPU.lab\", \"gpu.lab\", \"api.lab\"]").unwrap();
    // URLs are of a name that has a certificate.
    assert_eq!(config.session_host, "gpu.lab");
    let acme = config.acme.unwrap();
    assert_eq!(acme.names, ["gpu.lab", "api.lab"]);
    assert_eq!(acme.directory, crate::acme::LETS_ENCRYPT);

    let names = "[acme]\nnames = [\"gpu.lab\"]";
    let files = "[tls]\ncertificate = \"c\"\nkey = \"k\"";
    assert!(read(&format!("session_host = \"gpu.lab\"\n{names}")).is_ok());
    assert!(read(&format!("domain = \"gpu.lab\"\n{names}\n{files}")).is_ok());
    for (text, word) in [
        ("[acme]\nnames = [\"*.gpu.lab\"]", "wildcard"),
        ("[acme]\nnames = [\"10.0.0.1\"]", "no name of a host"),
        ("[acme]\nemail = \"a@gpu.lab\"", "no name to get"),
        ("[acme]\ndirectory = \"http://ca.lab\"", "no ACME directory"),
        (
            "[acme]\nnames = [\"gpu.lab\"]\nca = \"none.pem\"",
            "none.pem",
        ),
        (
            &format!("session_host = \"x.lab\"\n{names}"),
            "--acme-name x.lab",
        ),
        (&format!("domain = \"gpu.lab\"\n{names}"), "*.gpu.lab"),
        (
            &format!("domain = \"lab\"\n{names}\n{files}"),
            "public logs",
        ),
        (
            &format!("domain = \"http://gpu.lab\"\n{names}\n{files}"),
            "in the clear",
        ),
    ] {
        let refused = refusal(text);
        assert!(refused.contains(word), "{text}: {refused}");
    }
}

#[test]
fn a_name_that_cannot_be_guessed_is_open_to_who_has_the_link() {
    let listen = "listen = \"0.0.0.0:9000\"\n";
    let access = |more: &str| read(&format!("{listen}{more}")).unwrap().access;
    assert_eq!(access(""), Access::Private);
    assert_eq!(access("domain = \"gpu.lab\""), Access::Link);
    let both = "access = \"private\"\ndomain = \"gpu.lab\"";
    assert_eq!(access(both), Access::Private);
}

#[test]
fn what_the_file_says_is_what_the_server_is() {
    let config = read(
        r#"
        listen = "0.0.0.0:9000"
        data_dir = "data"
        session_ports = "3000-3009"
        session_host = "gpu.lab"
        [limits]
        sessions_per_machine = 7
        timeout_max_minutes = 1_440
        start_minutes = 0.5
        grace_seconds = 2
        [session]
        memory_mib = 2048
        pids_max = 0
        [gpus]
        "T4" = 1
        "A10G" = 4
        CPU = 64
        [prices]
        "A10G" = 1.10
        "T4" = 1
        "#,
    )
    .unwrap();
    assert_eq!(config.listen, "0.0.0.0:9000".parse().unwrap());
    assert!(config.data_dir.0.is_absolute() && config.data_dir.0.ends_with("data"));
    assert_eq!(config.session_ports, 3000..=3009);
    assert_eq!(config.session_host, "gpu.lab");
    assert_eq!(config.access, Access::Private);
    assert_eq!(
        config.limits,
        Limits {
            sessions_per_machine: 7,
            start_limit: Millis(30_000),
            grace: Millis(2_000),
            ..Limits::default()
        }
    );
    assert_eq!(config.app_limits.memory_mib, Some(2048));
    assert_eq!(config.app_limits.pids, None);
    let gpus: Vec<_> = config
        .declared_gpus
        .iter()
        .map(|(gpu, n)| (gpu.0.as_str(), *n))
        .collect();
    assert_eq!(gpus, [("T4", 1), ("A10G", 4), ("CPU", 64)]);
    let rate = config.prices.rate(&GpuType("A10G".into()));
    assert_eq!(Some(rate), HourlyRate::from_dollars(1.10));
}

#[test]
fn a_flag_is_right_over_the_file_and_the_file_over_the_default() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dwell.toml");
    std::fs::write(&file, "listen = \"127.0.0.1:1111\"\naccess = \"private\"").unwrap();
    let flags = Flags {
        listen: Some("127.0.0.1:2222".parse().unwrap()),
        ..Flags::default()
    };
    let config = Config::load(Some(&file), flags).unwrap();
    assert_eq!(config.listen.port(), 2222);
    assert_eq!(config.access, Access::Private);
    let config = Config::load(None, Flags::default()).unwrap();
    assert_eq!(config.listen, DEFAULT_LISTEN);
    assert_eq!(config.access, Access::Link);
    assert_eq!(config.session_host, "127.0.0.1");
}

#[test]
fn a_default_timeout_is_never_above_the_longest() {
    let config = read("[limits]\ntimeout_max_minutes = 5").unwrap();
    assert_eq!(config.limits.timeout_default_minutes, 5);
    assert!(
        refusal("[limits]\ntimeout_max_minutes = 5\ntimeout_default_minutes = 6").contains(":3:")
    );
}

#[test]
fn urls_name_a_host_that_clients_can_use() {
    assert_eq!(host_of("::1".parse().unwrap()), "[::1]");
    assert_eq!(host_of("10.0.0.7".parse().unwrap()), "10.0.0.7");
    assert_ne!(host_of("0.0.0.0".parse().unwrap()), "0.0.0.0");
    check_host("[::1]").unwrap();
    check_host("gpu-1.lab").unwrap();
    assert!(check_host("gpu:80").is_err());
    assert!(check_host("me@gpu").is_err());
    assert!(check_host("").is_err());
}

#[test]
fn what_is_installed_on_kubernetes_has_a_config_that_is_understood() {
    read(include_str!("../../deploy/kubernetes/base/dwell.toml")).unwrap();
    read(include_str!(
        "../../deploy/kubernetes/several-servers/dwell.toml"
    ))
    .unwrap();
}
