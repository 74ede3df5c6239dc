//! Every setting with flag, variable, default and meaning: the one list that flags, help, `.env.example` and
//! [`super::ServeConfig`] follow.

/// The settings of `rocmforge serve`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is described by its `Setting::meaning`")]
pub enum SettingName {
    Model,
    Alias,
    Device,
    Workers,
    Threads,
    CtxSize,
    Host,
    Port,
    ApiKey,
    ApiKeyFile,
    CorsOrigin,
    RequestTimeout,
    Grace,
    MaxBody,
    MaxConnections,
    MaxQueue,
    MaxQueueTokens,
    MaxBodyTotal,
    ReadTimeout,
    WriteTimeout,
    RateLimitRpm,
    RateLimitTpm,
    Attach,
    HangTimeout,
    WorkerCpus,
    EnvFile,
}

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Which.
    pub name: SettingName,
    /// Without the dashes.
    pub flag: &'static str,
    /// Environment variable.
    pub variable: &'static str,
    /// Value without flag and variable, empty for none.
    pub default: &'static str,
    /// A value to show.
    pub example: &'static str,
    /// One line.
    pub meaning: &'static str,
}

const fn define(
    name: SettingName,
    [flag, variable, default, example, meaning]: [&'static str; 5],
) -> Setting {
    Setting { name, flag, variable, default, example, meaning }
}

const SETTINGS: &[Setting] = &[
    define(
        SettingName::Model,
        [
            "model",
            "ROCMFORGE_GGUF",
            "",
            "/models/qwen3-8b-q4_k_m.gguf",
            "GGUF model file; none: the built-in demo model",
        ],
    ),
    define(
        SettingName::Alias,
        ["alias", "ROCMFORGE_ALIAS", "", "my-model", "name of the model in the API; none: the file's name"],
    ),
    define(
        SettingName::Device,
        ["device", "ROCMFORGE_DEVICE", "auto", "hip", "what workers compute on: auto, cpu or hip"],
    ),
    define(
        SettingName::Workers,
        ["workers", "ROCMFORGE_WORKERS", "1", "4", "worker processes, one per device"],
    ),
    define(
        SettingName::Threads,
        [
            "threads",
            "ROCMFORGE_THREADS",
            "",
            "8",
            "CPU threads of each worker; none: physical cores / workers",
        ],
    ),
    define(
        SettingName::CtxSize,
        [
            "ctx-size",
            "ROCMFORGE_CTX_SIZE",
            "",
            "8192",
            "tokens of prompt and output together; none: the worker decides",
        ],
    ),
    define(SettingName::Host, ["host", "ROCMFORGE_HOST", "127.0.0.1", "0.0.0.0", "address to listen on"]),
    define(SettingName::Port, ["port", "ROCMFORGE_PORT", "8000", "0", "port to listen on; 0: a free one"]),
    define(
        SettingName::ApiKey,
        [
            "api-key",
            "ROCMFORGE_API_KEY",
            "",
            "sk-secret",
            "key that requests to /v1 must carry; the flag may be repeated",
        ],
    ),
    define(
        SettingName::ApiKeyFile,
        [
            "api-key-file",
            "ROCMFORGE_API_KEY_FILE",
            "",
            "/etc/rocmforge/keys",
            "file with further keys, one a line",
        ],
    ),
    define(
        SettingName::CorsOrigin,
        [
            "cors-origin",
            "ROCMFORGE_CORS_ORIGIN",
            "",
            "https://chat.example.org",
            "origins that browsers may call from, separated by commas; * for all; none: no CORS",
        ],
    ),
    define(
        SettingName::RequestTimeout,
        ["request-timeout", "ROCMFORGE_REQUEST_TIMEOUT", "600", "60", "seconds a request may take in all"],
    ),
    define(
        SettingName::Grace,
        ["grace", "ROCMFORGE_GRACE", "30", "5", "seconds running requests may finish in at shutdown"],
    ),
    define(
        SettingName::MaxBody,
        ["max-body", "ROCMFORGE_MAX_BODY", "16", "64", "longest request body in MiB"],
    ),
    define(
        SettingName::MaxConnections,
        ["max-connections", "ROCMFORGE_MAX_CONNECTIONS", "4096", "1024", "most open HTTP connections"],
    ),
    define(
        SettingName::MaxQueue,
        ["max-queue", "ROCMFORGE_MAX_QUEUE", "512", "64", "most requests waiting for a worker; more get 429"],
    ),
    define(
        SettingName::MaxQueueTokens,
        [
            "max-queue-tokens",
            "ROCMFORGE_MAX_QUEUE_TOKENS",
            "4000000",
            "200000",
            "most tokens (prompt and largest output) of waiting requests; more get 429",
        ],
    ),
    define(
        SettingName::MaxBodyTotal,
        [
            "max-body-total",
            "ROCMFORGE_MAX_BODY_TOTAL",
            "256",
            "64",
            "request bodies held at once in MiB, in sum; more get 503",
        ],
    ),
    define(
        SettingName::ReadTimeout,
        [
            "read-timeout",
            "ROCMFORGE_READ_TIMEOUT",
            "60",
            "10",
            "seconds a request's headers may take, and its body as many again",
        ],
    ),
    define(
        SettingName::WriteTimeout,
        [
            "write-timeout",
            "ROCMFORGE_WRITE_TIMEOUT",
            "60",
            "10",
            "seconds a client may take no byte of its answer before its connection is closed",
        ],
    ),
    define(
        SettingName::RateLimitRpm,
        [
            "rate-limit-rpm",
            "ROCMFORGE_RATE_LIMIT_RPM",
            "0",
            "60",
            "requests a minute of each API key (without keys: of all clients together); 0: no limit",
        ],
    ),
    define(
        SettingName::RateLimitTpm,
        [
            "rate-limit-tpm",
            "ROCMFORGE_RATE_LIMIT_TPM",
            "0",
            "100000",
            "tokens a minute of each API key, prompt and output together; 0: no limit",
        ],
    ),
    define(
        SettingName::Attach,
        [
            "attach",
            "ROCMFORGE_ATTACH",
            "",
            "/run/rocmforge-worker/0/worker.sock",
            "sockets of workers that run by themselves, separated by commas; instead of --workers",
        ],
    ),
    define(
        SettingName::HangTimeout,
        [
            "hang-timeout",
            "ROCMFORGE_HANG_TIMEOUT",
            "30",
            "10",
            "seconds without an answer or progress after which a worker is killed and replaced",
        ],
    ),
    define(
        SettingName::WorkerCpus,
        [
            "worker-cpus",
            "ROCMFORGE_WORKER_CPUS",
            "auto",
            "0-3;4-7",
            "processors of each worker, separated by semicolons; auto: an equal share each; off: all",
        ],
    ),
    define(
        SettingName::EnvFile,
        [
            "env-file",
            "ROCMFORGE_ENV_FILE",
            "",
            "/etc/rocmforge/rocmforge.env",
            "file of NAME=value lines in place of variables; read again at SIGHUP",
        ],
    ),
];

/// Variables without a flag: name, default, example, meaning.
pub const OTHER_VARIABLES: &[[&str; 4]] = &[
    ["ROCMFORGE_API_KEYS", "", "sk-one,sk-two", "several keys, separated by commas"],
    [
        "ROCMFORGE_ADMIN_KEY",
        "",
        "adm-secret",
        "key of the routes under /admin and of the commands that use them; none: only from the server's own host",
    ],
    [
        "ROCMFORGE_WORKER_BIN",
        "",
        "/usr/lib/rocmforge/rocmforge-worker",
        "the worker's executable; none: beside our own",
    ],
    [
        "ROCMFORGE_LOG_LEVEL",
        "warn",
        "info,gateway=debug",
        "error, warn, info, debug, trace, or a filter by module",
    ],
    ["ROCMFORGE_LOG_FORMAT", "human", "json", "form of log lines on stderr: human or json"],
    [
        "ROCMFORGE_KV_TYPE",
        "f16",
        "q8_0",
        "element type of the KV cache in workers: f16, q8_0 (half the memory) or f32",
    ],
    [
        "ROCMFORGE_KV_CACHE_MIB",
        "",
        "8192",
        "memory of each worker's KV cache in MiB; none: four contexts, at most a quarter of the free memory",
    ],
    ["ROCMFORGE_SEQUENCES_MAX", "64", "16", "sequences a worker computes at once"],
    ["ROCMFORGE_WAITING_MAX", "1024", "64", "requests that may wait inside a worker"],
    ["ROCMFORGE_STEP_TOKENS", "512", "2048", "most tokens a worker computes in one step"],
    [
        "ROCMFORGE_SPECULATION",
        "auto",
        "off",
        "guessing that text which repeats goes on repeating, which changes no token: auto or off",
    ],
    [
        "ROCMFORGE_URL",
        "http://127.0.0.1:8000",
        "https://llm.example.org",
        "server that the commands ask: generate, models, status, drain, restart-workers",
    ],
    ["ROCMFORGE_MODELS", "", "/models", "folder whose files the command models lists"],
    [
        "ROCMFORGE_CPU_PIN",
        "off",
        "0-3,8",
        "pins compute threads, one to a physical core: off, on, or the CPUs to use",
    ],
    [
        "ROCMFORGE_CPU_LIST",
        "",
        "0-3,8",
        "CPUs that a worker's compute threads are restricted and pinned to; the gateway sets it for each worker",
    ],
    ["ROCMFORGE_CPU_ISA", "", "avx2", "forces a CPU code path in workers: portable, avx2, avx512 or amx"],
    [
        "ROCMFORGE_FAULT",
        "",
        "die=segv@p=0.001;slow=5",
        "faults that workers make happen to themselves, for tests",
    ],
];

/// All settings, in the order of the help.
pub fn settings() -> &'static [Setting] {
    SETTINGS
}

/// One setting. The table is in the order of the names, which a test holds.
pub fn setting(name: SettingName) -> &'static Setting {
    &SETTINGS[name as usize]
}
