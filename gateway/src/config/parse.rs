//! One setting's value and where it came from, and the checks by type.

use super::settings::{SettingName, setting};
use super::{ConfigError, Device, WorkerCpus};
use crate::secret::Secret;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::time::Duration;

/// A setting as found.
pub(super) struct Value {
    /// `None` when neither set nor defaulted.
    pub(super) text: Option<String>,
    pub(super) from_flag: bool,
    origin: String,
    /// All values of a repeated flag.
    all: Vec<String>,
}

impl Value {
    /// Flag over variable over default. An empty variable counts as not set.
    pub(super) fn read(
        name: SettingName,
        flag: &dyn Fn(SettingName) -> Vec<String>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let setting = setting(name);
        let flags = flag(name);
        if let Some(last) = flags.last() {
            let origin = format!("--{}", setting.flag);
            return Self { text: Some(last.clone()), from_flag: true, origin, all: flags };
        }
        let set = variable(setting.variable).filter(|value| !value.is_empty());
        let default = || (!setting.default.is_empty()).then(|| setting.default.to_owned());
        let text = set.or_else(default);
        Self {
            all: text.iter().cloned().collect(),
            text,
            from_flag: false,
            origin: setting.variable.to_owned(),
        }
    }

    pub(super) fn number(&self, min: usize, max: usize) -> Result<usize, ConfigError> {
        let number = self.text().parse().ok().filter(|number| (min..=max).contains(number));
        number.ok_or_else(|| self.refuse(format!("use a whole number from {min} to {max}")))
    }

    /// A limit, of which 0 is none.
    pub(super) fn limit(&self) -> Result<Option<u32>, ConfigError> {
        let number = self.number(0, u32::MAX as usize)?;
        Ok(u32::try_from(number).ok().filter(|number| *number > 0))
    }

    pub(super) fn seconds(&self, min: f64, max: f64) -> Result<Duration, ConfigError> {
        let seconds: Option<f64> = self.text().parse().ok().filter(|seconds| (min..=max).contains(seconds));
        let seconds =
            seconds.ok_or_else(|| self.refuse(format!("use a number of seconds from {min} to {max}")))?;
        Ok(Duration::from_secs_f64(seconds))
    }

    pub(super) fn address(&self) -> Result<IpAddr, ConfigError> {
        match self.text() {
            "localhost" => Ok(Ipv4Addr::LOCALHOST.into()),
            text => text
                .parse()
                .map_err(|_| self.refuse("use an IP address such as 127.0.0.1, 0.0.0.0 or ::1".to_owned())),
        }
    }

    pub(super) fn device(&self) -> Result<Device, ConfigError> {
        match self.text() {
            "auto" => Ok(Device::Auto),
            "cpu" => Ok(Device::Cpu),
            "hip" => Ok(Device::Hip),
            _ => Err(self.refuse("use auto, cpu or hip".to_owned())),
        }
    }

    pub(super) fn optional_path(&self) -> Result<Option<PathBuf>, ConfigError> {
        match self.text.as_deref() {
            Some("") => Err(self.refuse("use a path, or leave it out".to_owned())),
            path => Ok(path.map(PathBuf::from)),
        }
    }

    /// Paths separated by commas; none is none.
    pub(super) fn paths(&self) -> Result<Vec<PathBuf>, ConfigError> {
        let Some(text) = &self.text else { return Ok(Vec::new()) };
        let paths: Vec<PathBuf> = text.split(',').map(|path| PathBuf::from(path.trim())).collect();
        let mut different = paths.clone();
        different.sort();
        different.dedup();
        if paths.iter().any(|path| path.as_os_str().is_empty()) || different.len() < paths.len() {
            return Err(self.refuse("use different paths, separated by commas".to_owned()));
        }
        Ok(paths)
    }

    /// Lists of processors, one for each of `workers`.
    pub(super) fn worker_cpus(&self, workers: usize) -> Result<WorkerCpus, ConfigError> {
        let lists: Vec<String> = match self.text() {
            "auto" => return Ok(WorkerCpus::Auto),
            "off" => return Ok(WorkerCpus::Off),
            text => text.split(';').map(|list| list.trim().to_owned()).collect(),
        };
        if !lists.iter().all(|list| is_cpu_list(list)) {
            return Err(self.refuse("use auto, off or lists such as 0-3;4-7".to_owned()));
        }
        if lists.len() != workers {
            return Err(
                self.refuse(format!("use {workers} lists separated by semicolons, one for each worker"))
            );
        }
        Ok(WorkerCpus::Lists(lists))
    }

    /// A name as it appears in URLs and JSON.
    pub(super) fn optional_word(&self) -> Result<Option<String>, ConfigError> {
        let Some(word) = self.text.as_deref() else { return Ok(None) };
        let fits = !word.is_empty()
            && word.len() <= 256
            && !word.chars().any(|c| c.is_control() || c.is_whitespace());
        if fits {
            Ok(Some(word.to_owned()))
        } else {
            Err(self.refuse("use 1 to 256 characters without spaces".to_owned()))
        }
    }

    pub(super) fn origins(&self) -> Result<Vec<String>, ConfigError> {
        let origins =
            self.all.iter().flat_map(|list| list.split(',')).map(str::trim).filter(|one| !one.is_empty());
        let origins: Vec<String> = origins.map(str::to_owned).collect();
        let fits = |origin: &String| {
            let host = origin.strip_prefix("http://").or(origin.strip_prefix("https://"));
            origin == "*"
                || host.is_some_and(|host| {
                    !host.is_empty() && host.chars().all(|c| c.is_ascii_graphic() && c != '/')
                })
        };
        if origins.iter().all(fits) {
            Ok(origins)
        } else {
            Err(self.refuse("use origins such as https://chat.example.org, or *".to_owned()))
        }
    }

    pub(super) fn keys(&self) -> Result<Vec<Secret>, ConfigError> {
        let fits = |key: &String| !key.is_empty() && key.chars().all(|c| c.is_ascii_graphic());
        if self.all.iter().all(fits) {
            return Ok(self.all.iter().map(Secret::new).collect());
        }
        let reason = "use visible ASCII characters without spaces".to_owned();
        Err(ConfigError { value: "(hidden)".to_owned(), ..self.refuse(reason) })
    }

    fn text(&self) -> &str {
        self.text.as_deref().unwrap_or_default()
    }

    fn refuse(&self, reason: String) -> ConfigError {
        ConfigError {
            origin: self.origin.clone(),
            value: self.text().to_owned(),
            reason,
            from_flag: self.from_flag,
        }
    }
}

/// Whether this is a list of processors as the kernel writes them: `0-3,8`.
fn is_cpu_list(list: &str) -> bool {
    list.split(',').all(|part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<u16>(), last.parse::<u16>()) {
            (Ok(first), Ok(last)) => first <= last,
            _ => false,
        }
    })
}
