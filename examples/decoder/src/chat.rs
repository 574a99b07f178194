//! Chat templates: messages to the text that a model was trained on, as its Jinja template writes
//! it.
//!
//! A template comes with the model's files and is a program, perhaps one of ill will. It runs on an
//! allowance of instructions and bytes in proportion to the messages. The engine does not count
//! what it takes to compare lists or to make text of them, which for a list of lists of lists can
//! be without end; so here every operation that may do so weighs its values first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use minijinja::machinery::{CompiledTemplate, Instruction, TemplateConfig, Token, eval, make_string_output, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, ErrorKind, Expression, State};
use serde::Deserialize;

use crate::config::optional_json;
use crate::error::{Error, Result};
use crate::model::read_error;

/// Bytes of a template. The longest in use, with tools and thinking, have about 20 thousand.
const SOURCE_LIMIT: usize = 1 << 18;
/// Words and signs within one pair of braces. A chain of operators is compiled by as many calls
/// within each other.
const TAG_LIMIT: usize = 1000;
/// Allowance of a conversation without messages. One unit pays for an instruction or 64 bytes.
const FUEL: u64 = 50_000;
/// Allowance for each message more.
const MESSAGE_FUEL: u64 = 5_000;
/// Allowance of one filter, test or operator, which is paid for only when it is done: 16 MiB.
const STEP_FUEL: u64 = 1 << 18;
/// How deep lists and maps may lie in each other.
const DEPTH: usize = 16;
/// How many namespaces a rendering may have. They alone can be put into each other after they were
/// made.
const NAMESPACES: u32 = 64;
/// What the template is called in errors.
const NAME: &str = "chat";

/// Operators that look into lists and maps, and what they do once their values have been weighed.
/// No template can write these names as functions.
static OPERATORS: LazyLock<Vec<(&str, Expression<'static, 'static>)>> = LazyLock::new(|| {
    let compiled = |(name, text): (&'static str, &'static str)| PLAIN.compile_expression(text).ok().map(|expression| (name, expression));
    let all = [
        ("+", "a + b"),
        ("==", "a == b"),
        ("!=", "a != b"),
        ("<", "a < b"),
        ("<=", "a <= b"),
        (">", "a > b"),
        (">=", "a >= b"),
        ("in", "a in b"),
        ("[:]", "a[b:c:d]"),
        ("*", "a * b"),
    ];
    all.into_iter().filter_map(compiled).collect()
});

/// The engine as it comes, for what has been weighed.
static PLAIN: LazyLock<Environment<'static>> = LazyLock::new(|| {
    let mut environment = Environment::new();
    environment.set_fuel(Some(STEP_FUEL));
    environment
});

/// Filters that look into their values.
const FILTERS: [&str; 35] = [
    "attr",
    "abs",
    "bool",
    "capitalize",
    "dictsort",
    "escape",
    "e",
    "float",
    "format",
    "indent",
    "int",
    "items",
    "join",
    "lines",
    "list",
    "lower",
    "map",
    "max",
    "min",
    "reject",
    "rejectattr",
    "replace",
    "reverse",
    "round",
    "safe",
    "select",
    "selectattr",
    "sort",
    "split",
    "string",
    "sum",
    "title",
    "trim",
    "unique",
    "upper",
];
/// Filters that would nest lists, or write at length what no chat needs.
const REFUSED: [&str; 6] = ["batch", "chain", "groupby", "pprint", "slice", "zip"];
/// Tests that look into their values.
const TESTS: [&str; 18] = ["eq", "equalto", "==", "ne", "!=", "lt", "lessthan", "<", "le", "<=", "gt", "greaterthan", ">", "ge", ">=", "in", "lower", "upper"];

/// A model's chat template.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    source: String,
}

/// One message of a chat.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// Who speaks: `system`, `user` or `assistant`, or what else the template knows.
    pub role: &'a str,
    /// What is said.
    pub content: &'a str,
}

/// The part of `tokenizer_config.json` that is of use here.
#[derive(Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Many(Vec<Named>),
}

#[derive(Deserialize)]
struct Named {
    name: String,
    template: String,
}

impl ChatTemplate {
    /// Takes a template's source.
    ///
    /// # Errors
    /// [`Error::Template`] for what is no Jinja template, or one that asks for more than chats do.
    pub fn new(source: &str) -> Result<Self> {
        let template = Self::unread(source);
        template.compiled(&environment(0)?)?;
        Ok(template)
    }

    /// Takes what a model's files hold. A template that is none, or that is not run here, is
    /// refused when it is asked to write, since much can be done with a model without.
    pub(crate) fn unread(source: &str) -> Self {
        Self { source: if source.len() > SOURCE_LIMIT { source.to_owned() } else { without_generation(source) } }
    }

    /// Opens the template of a model's folder: `chat_template.jinja` or, without one, the
    /// `chat_template` of `tokenizer_config.json`, of several the one named `default`. Returns none
    /// where there is none.
    ///
    /// # Errors
    /// [`Error::Read`] and [`Error::Json`].
    pub fn open(directory: &Path) -> Result<Option<Self>> {
        let path = directory.join("chat_template.jinja");
        if path.exists() {
            return Ok(Some(Self::unread(&std::fs::read_to_string(&path).map_err(read_error(&path))?)));
        }
        let config: Option<TokenizerConfig> = optional_json(&directory.join("tokenizer_config.json"))?;
        Ok(match config.and_then(|config| config.chat_template) {
            None => None,
            Some(Templates::One(source)) => Some(Self::unread(&source)),
            Some(Templates::Many(all)) => all.iter().find(|one| one.name == "default").map(|one| Self::unread(&one.template)),
        })
    }

    /// Returns the text of a conversation. With `add_generation_prompt` it ends where the
    /// assistant's answer begins. `begin` and `end` are the texts of the tokens that begin and end
    /// a text, empty where the model has none. The result is for
    /// [`Text::encode_with_special`](crate::Text::encode_with_special).
    ///
    /// # Errors
    /// [`Error::Template`] for what is no template, with what the template says of messages that it
    /// refuses, or where it fails or runs out of its allowance.
    pub fn render(&self, messages: &[Message<'_>], add_generation_prompt: bool, begin: &str, end: &str) -> Result<String> {
        let bytes: usize = messages.iter().map(|message| message.role.len() + message.content.len()).sum();
        // A unit for each byte of the messages lets a template copy them some 64 times.
        let environment = environment(FUEL + MESSAGE_FUEL * messages.len() as u64 + bytes as u64)?;
        let compiled = self.compiled(&environment)?;
        let message = |message: &Message<'_>| Value::from(BTreeMap::from([("role", message.role.to_owned()), ("content", message.content.to_owned())]));
        let context = Value::from(BTreeMap::from([
            ("messages", messages.iter().map(message).collect::<Vec<Value>>().into()),
            ("add_generation_prompt", Value::from(add_generation_prompt)),
            ("bos_token", Value::from(begin)),
            ("eos_token", Value::from(end)),
        ]));
        let mut written = String::new();
        let mut output = make_string_output(&mut written);
        // Text for a model, not for a page.
        eval(&environment, &compiled.instructions, context, &compiled.blocks, &mut output, AutoEscape::None).map_err(failed)?;
        drop(output);
        Ok(written)
    }

    /// Compiles the template, and puts operators that weigh their values in the place of the
    /// engine's.
    fn compiled(&self, environment: &Environment<'_>) -> Result<CompiledTemplate<'_>> {
        if self.source.len() > SOURCE_LIMIT {
            return Err(Error::Template(format!("it is longer than {SOURCE_LIMIT} bytes")));
        }
        // The engine counts lines, and characters of a line, in 16 bits.
        let most = usize::from(u16::MAX) - 1;
        if self.source.split('\n').count() > most || self.source.split('\n').any(|line| line.chars().count() > most) {
            return Err(Error::Template(format!("it has more than {most} lines, or a line of more than as many characters")));
        }
        let settings = TemplateConfig { syntax_config: environment.syntax().clone(), default_auto_escape: std::sync::Arc::new(|_| AutoEscape::None) };
        let mut length = 0;
        for token in tokenize(&self.source, false, environment.syntax().clone()) {
            length = match token.map_err(failed)?.0 {
                Token::TemplateData(_) | Token::VariableStart | Token::BlockStart => 0,
                _ => length + 1,
            };
            if length > TAG_LIMIT {
                return Err(Error::Template(format!("a tag is longer than {TAG_LIMIT} words")));
            }
        }
        let mut compiled = CompiledTemplate::new(NAME, &self.source, &settings).map_err(failed)?;
        let mut loops = 0;
        for place in 0.. {
            let Some(instruction) = compiled.instructions.get_mut(place) else { break };
            let call = |name, count: usize| u16::try_from(count).map(|count| Instruction::CallFunction(name, Some(count)));
            let weighing = match instruction {
                Instruction::Add => call("+", 2),
                Instruction::Mul => call("*", 2),
                Instruction::StringConcat => call("~", 2),
                Instruction::Eq => call("==", 2),
                Instruction::Ne => call("!=", 2),
                Instruction::Lt => call("<", 2),
                Instruction::Lte => call("<=", 2),
                Instruction::Gt => call(">", 2),
                Instruction::Gte => call(">=", 2),
                Instruction::In => call("in", 2),
                Instruction::Slice => call("[:]", 4),
                Instruction::BuildList(Some(count)) | Instruction::BuildTuple(Some(count)) => call("[]", *count),
                Instruction::BuildMap(count) => call("{}", count.saturating_mul(2)),
                Instruction::CompareAndPreserve(_) => return Err(Error::Template("comparisons in a chain are not run here".into())),
                // Each would hold the one before, and their number is that of the turns.
                Instruction::BuildMacro(..) if loops > 0 => return Err(Error::Template("macros within loops are not run here".into())),
                Instruction::PushLoop(_) => {
                    loops += 1;
                    continue;
                }
                Instruction::PopLoopFrame => {
                    loops -= 1;
                    continue;
                }
                _ => continue,
            };
            *instruction = weighing.map_err(|_| Error::Template("a list in it is longer than 65535".into()))?;
        }
        Ok(compiled)
    }
}

/// The engine with an allowance, and with weighing operators, filters and tests.
fn environment(fuel: u64) -> Result<Environment<'static>> {
    let mut environment = Environment::new();
    environment.set_fuel(Some(fuel));
    // As Hugging Face sets Jinja up.
    environment.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build().map_err(failed)?);
    environment.add_function("raise_exception", |message: String| -> Outcome { refused(message) });
    // A browser's clock is not within reach of this crate; templates that ask whether there is one
    // do without.
    #[cfg(not(target_arch = "wasm32"))]
    environment.add_function("strftime_now", |format: String| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        date(&format, now.as_secs())
    });
    environment.set_formatter(|output, state, value| {
        text(value)?;
        minijinja::escape_formatter(output, state, value)
    });
    environment.set_unknown_method_callback(|state, value, method, arguments| {
        weigh(state, std::slice::from_ref(value))?;
        weigh(state, arguments)?;
        plain_list(minijinja_contrib::pycompat::unknown_method_callback(state, value, method, arguments)?)
    });
    for name in FILTERS {
        environment.add_filter(name, move |state: &State, values: Rest<Value>, named: Kwargs| -> Outcome {
            let values = arguments(values, named);
            weigh(state, &values)?;
            plain_list(PLAIN.empty_state().apply_filter(name, &values)?)
        });
    }
    for name in REFUSED {
        environment.remove_filter(name);
    }
    for name in TESTS {
        environment.add_test(name, move |state: &State, values: Rest<Value>| -> std::result::Result<bool, minijinja::Error> {
            weigh(state, &values)?;
            PLAIN.empty_state().perform_test(name, &values)
        });
    }
    for (name, expression) in OPERATORS.iter() {
        environment.add_function(*name, move |state: &State, values: Rest<Value>| -> Outcome {
            weigh(state, &values)?;
            if *name == "*" && values.iter().any(|value| value.kind() != ValueKind::Number) {
                return refused("only numbers are multiplied here".into());
            }
            plain_list(expression.eval(Value::from(["a", "b", "c", "d"].into_iter().zip(values.0).collect::<BTreeMap<&str, Value>>()))?)
        });
    }
    environment.add_function("~", |a: Value, b: Value| -> Outcome {
        text(&a)?;
        text(&b)?;
        Ok(format!("{a}{b}").into())
    });
    environment.add_function("[]", |state: &State, values: Rest<Value>| -> Outcome {
        weigh(state, std::slice::from_ref(&Value::from(values.0.clone())))?;
        Ok(values.0.into())
    });
    environment.add_function("{}", |state: &State, values: Rest<Value>| -> Outcome {
        values.chunks(2).try_for_each(|pair| text(&pair[0]))?;
        let map = Value::from(values.chunks(2).map(|pair| (pair[0].clone(), pair[1].clone())).collect::<BTreeMap<Value, Value>>());
        weigh(state, std::slice::from_ref(&map))?;
        Ok(map)
    });
    environment.remove_global("dict");
    let made = AtomicU32::new(0);
    environment.add_function("namespace", move |state: &State, values: Rest<Value>, named: Kwargs| -> Outcome {
        let values = arguments(values, named);
        weigh(state, &values)?;
        if made.fetch_add(1, Ordering::Relaxed) >= NAMESPACES {
            return refused(format!("it has more than {NAMESPACES} namespaces"));
        }
        let mut plain = PLAIN.empty_state();
        let namespace = plain.lookup("namespace").unwrap_or_default();
        namespace.call(&mut plain, &values)
    });
    Ok(environment)
}

/// All arguments of a call, as the engine passes them on.
fn arguments(values: Rest<Value>, named: Kwargs) -> Vec<Value> {
    let mut all = values.0;
    if named.args().next().is_some() {
        all.push(named.into());
    }
    all
}

type Outcome = std::result::Result<Value, minijinja::Error>;

fn refused<T>(reason: String) -> std::result::Result<T, minijinja::Error> {
    Err(minijinja::Error::new(ErrorKind::InvalidOperation, reason))
}

/// Refuses what is no text, number or nothing.
fn text(value: &Value) -> std::result::Result<(), minijinja::Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None | ValueKind::Bool | ValueKind::Number | ValueKind::String => Ok(()),
        other => refused(format!("a value of the kind {other} is no text")),
    }
}

/// Pays for all that lies in some values, however often the same lies in it, and refuses what lies
/// too deep. What they hold themselves is a unit each and one for 64 bytes.
fn weigh(state: &State, values: &[Value]) -> std::result::Result<(), minijinja::Error> {
    fn inside(value: &Value, depth: usize, left: &mut u64) -> std::result::Result<(), minijinja::Error> {
        if !matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::Iterable) {
            return Ok(());
        }
        if depth == DEPTH {
            return refused(format!("lists and maps lie more than {DEPTH} deep in each other"));
        }
        for item in value.try_iter()? {
            let item = if value.kind() == ValueKind::Map { value.get_item(&item)? } else { item };
            let cost = 1 + item.as_str().map_or(0, str::len) as u64 / 64;
            *left = left.checked_sub(cost).ok_or_else(|| minijinja::Error::from(ErrorKind::OutOfFuel))?;
            inside(&item, depth + 1, left)?;
        }
        Ok(())
    }
    let all = state.fuel_levels().map_or(FUEL, |(_, left)| left);
    let mut left = all;
    values.iter().try_for_each(|value| inside(value, 0, &mut left))?;
    // Looking is cheaper than what the engine counts as a step.
    state.consume_fuel((all - left).div_ceil(8))
}

/// A list in place of what would compute one each time, and perhaps from another such.
fn plain_list(value: Value) -> Outcome {
    if value.kind() == ValueKind::Iterable || value.kind() == ValueKind::Seq { Ok(value.try_iter()?.collect::<Vec<Value>>().into()) } else { Ok(value) }
}

/// Writes a date of Greenwich, given in seconds since 1970, as the template asks for it: `%d`,
/// `%m`, `%b`, `%B`, `%Y`, `%H`, `%M` and `%S`. Other signs stay as they are.
#[cfg(not(target_arch = "wasm32"))]
fn date(format: &str, seconds: u64) -> String {
    const MONTHS: [&str; 12] = ["January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December"];
    let leap = |year: u64| year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    let (mut year, mut day) = (1970, seconds / 86_400);
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let parts = [
        ("%d", format!("{:02}", day + 1)),
        ("%m", format!("{:02}", month + 1)),
        ("%b", MONTHS[month][..3].to_owned()),
        ("%B", MONTHS[month].to_owned()),
        ("%Y", year.to_string()),
        ("%H", format!("{:02}", seconds / 3600 % 24)),
        ("%M", format!("{:02}", seconds / 60 % 60)),
        ("%S", format!("{:02}", seconds % 60)),
    ];
    parts.iter().fold(format.to_owned(), |written, (sign, part)| written.replace(sign, part))
}

/// The tags that mark the assistant's part for training are Hugging Face's own; a condition that
/// always holds takes their place.
fn without_generation(source: &str) -> String {
    let mut written = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(place) = rest.find("{%") {
        let (before, tag) = rest.split_at(place);
        let Some((inner, _)) = tag[2..].split_once("%}") else { break };
        written.push_str(before);
        let word = inner.trim_matches(['-', '+']).trim();
        match word {
            "generation" => written.push_str(&tag[..2 + inner.len()].replace("generation", "if true")),
            "endgeneration" => written.push_str(&tag[..2 + inner.len()].replace("endgeneration", "endif")),
            _ => written.push_str(&tag[..2 + inner.len()]),
        }
        rest = &tag[2 + inner.len()..];
    }
    written.push_str(rest);
    written
}

fn failed(error: minijinja::Error) -> Error {
    let place = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    match (error.kind(), error.detail()) {
        (ErrorKind::OutOfFuel, _) => Error::Template(format!("it ran out of its allowance of time and memory{place}")),
        (_, Some(detail)) => Error::Template(format!("{detail}{place}")),
        (kind, None) => Error::Template(format!("{kind}{place}")),
    }
}

#[cfg(all(test, not(target_arch = "wasm32")))]
mod tests {
    use super::date;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, wanted) in [
            (0, "01 Jan 1970 00:00:00"),
            (951_782_399, "28 Feb 2000 23:59:59"),
            (951_782_400, "29 Feb 2000 00:00:00"),
            (1_735_689_599, "31 Dec 2024 23:59:59"),
            (4_107_542_400, "01 Mar 2100 00:00:00"),
        ] {
            assert_eq!(date("%d %b %Y %H:%M:%S", seconds), wanted);
        }
        assert_eq!(date("%B %m %q", 0), "January 01 %q");
    }
}
