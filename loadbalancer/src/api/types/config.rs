//! What is wrong in a configuration, as `loadbalancer check --json` tells it.

use serde::Serialize;

use crate::config::ConfigError;

#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ConfigProblem<'a> {
    pub file: &'a str,
    /// From 1; zero: the file as a whole.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    pub message: &'a str,
    pub help: &'a str,
}

impl<'a> From<&'a ConfigError> for ConfigProblem<'a> {
    fn from(it: &'a ConfigError) -> Self {
        Self { file: &it.file, line: it.line, column: it.column, message: &it.message, help: &it.help }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn errors_are_given_to_programs_as_well() {
        let text = "[gateway]\ninterfaces = \"eth0\"\n[[service]]\nname = \"web\"\nlisten = \"192.0.2.1:80\"\n\
                    mode = \"dsr-12\"\n[[service.server]]\naddress = \"10.0.0.1\"\n";
        let errors = Config::parse("lb.toml", text).expect_err("the mode is wrong");
        let problems: Vec<ConfigProblem<'_>> = errors.0.iter().map(ConfigProblem::from).collect();
        assert_eq!(
            serde_json::to_value(problems).expect("it is plain data"),
            serde_json::json!([{
                "file": "lb.toml",
                "line": 6,
                "column": 8,
                "message": "`dsr-12` is no value for `mode`",
                "help": "choose one of \"nat\", \"dnat\", \"dsr-l2\", \"dsr-ipip\", \"dsr-gue\""
            }])
        );
    }
}
