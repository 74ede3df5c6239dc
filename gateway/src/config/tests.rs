//! Flags over variables over defaults, and the errors that name them.

use super::*;

fn resolve(flags: &[(SettingName, &str)], variables: &[(&str, &str)]) -> Result<ServeConfig, ConfigError> {
    let flag =
        |name| flags.iter().filter(|(flag, _)| *flag == name).map(|(_, value)| (*value).to_owned()).collect();
    let variable =
        |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
    let executable = Some(PathBuf::from("/opt/bin/rocmforge"));
    ServeConfig::resolve(&flag, &Surroundings { variable: &variable, cores: 16, executable })
}

fn refused(flags: &[(SettingName, &str)], variables: &[(&str, &str)], expected: &str, code: ExitCode) {
    let error = resolve(flags, variables).unwrap_err();
    assert_eq!(error.to_string(), expected);
    assert_eq!(error.exit_code(), code);
}

#[test]
fn defaults_are_those_of_the_table() {
    let config = resolve(&[], &[]).unwrap();
    assert_eq!((config.host.to_string().as_str(), config.port), ("127.0.0.1", 8000));
    assert_eq!((config.workers, config.threads, config.device), (1, 16, Device::Auto));
    assert_eq!((config.model, config.alias, config.context_tokens), (None, None, None));
    assert_eq!(config.worker_program, PathBuf::from("/opt/bin/rocmforge-worker"));
    assert!(config.api_keys.is_empty() && config.cors_origins.is_empty());
}

#[test]
fn flags_go_before_variables() {
    let variables = [("ROCMFORGE_PORT", "9000"), ("ROCMFORGE_WORKERS", "4"), ("ROCMFORGE_GGUF", "/m.gguf")];
    let config = resolve(&[(SettingName::Port, "0")], &variables).unwrap();
    assert_eq!((config.port, config.workers, config.threads), (0, 4, 4));
    assert_eq!(config.model, Some(PathBuf::from("/m.gguf")));
    assert_eq!(resolve(&[], &[("ROCMFORGE_PORT", "")]).unwrap().port, 8000, "empty is not set");
}

#[test]
fn keys_come_from_flags_or_variables() {
    let keys = |flags: &[_], variables: &[_]| -> Vec<String> {
        let keys = resolve(flags, variables).unwrap().api_keys;
        keys.iter().map(|key| key.expose().to_owned()).collect()
    };
    assert_eq!(
        keys(&[(SettingName::ApiKey, "a"), (SettingName::ApiKey, "b")], &[("ROCMFORGE_API_KEYS", "c")]),
        ["a", "b"]
    );
    assert_eq!(keys(&[], &[("ROCMFORGE_API_KEY", "a"), ("ROCMFORGE_API_KEYS", "b, c")]), ["a", "b", "c"]);
}

#[test]
fn refusals_name_origin_value_and_remedy() {
    let usage = ExitCode::Usage;
    refused(
        &[(SettingName::Threads, "0")],
        &[],
        "--threads is `0`: use a whole number from 1 to 1024",
        usage,
    );
    refused(
        &[(SettingName::Port, "65536")],
        &[],
        "--port is `65536`: use a whole number from 0 to 65535",
        usage,
    );
    refused(
        &[(SettingName::ApiKey, "with space")],
        &[],
        "--api-key is `(hidden)`: use visible ASCII characters without spaces",
        usage,
    );
    for (variable, value) in [("ROCMFORGE_ADMIN_KEY", "adm-1\n"), ("ROCMFORGE_API_KEYS", "sk-one,sk two")] {
        let expected = format!("{variable} is `(hidden)`: use visible ASCII characters without spaces");
        refused(&[], &[(variable, value)], &expected, ExitCode::Configuration);
    }
    let configuration = ExitCode::Configuration;
    refused(
        &[],
        &[("ROCMFORGE_DEVICE", "cuda")],
        "ROCMFORGE_DEVICE is `cuda`: use auto, cpu or hip",
        configuration,
    );
    refused(
        &[],
        &[("ROCMFORGE_REQUEST_TIMEOUT", "NaN")],
        "ROCMFORGE_REQUEST_TIMEOUT is `NaN`: use a number of seconds from 1 to 86400",
        configuration,
    );
    for (name, value) in [
        (SettingName::Host, "not an address"),
        (SettingName::CorsOrigin, "chat.example.org"),
        (SettingName::Alias, "two words"),
        (SettingName::Model, ""),
        (SettingName::Workers, "-1"),
        (SettingName::CtxSize, "1"),
    ] {
        let error = resolve(&[(name, value)], &[]).unwrap_err();
        assert!(
            error.to_string().starts_with(&format!("--{} is `{value}`: use ", setting(name).flag)),
            "{error}"
        );
    }
}

#[test]
fn the_table_is_in_the_order_of_the_names() {
    for (index, entry) in settings().iter().enumerate() {
        assert_eq!(entry.name as usize, index, "{}", entry.flag);
        assert!(std::ptr::eq(setting(entry.name), entry));
    }
}
