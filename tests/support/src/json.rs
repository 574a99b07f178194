//! JSON files with something else in them.

use rand::RngExt;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// Returns a file with something else in one place; a field that is not there is added.
pub fn with_value(file: &Value, place: &str, value: Value) -> String {
    let mut file = file.clone();
    let (parent, name) = place.rsplit_once('/').unwrap();
    match file.pointer_mut(parent).unwrap() {
        Value::Array(items) => items[name.parse::<usize>().unwrap()] = value,
        fields => fields[name] = value,
    }
    file.to_string()
}

/// Returns a list of a file without its last item.
pub fn shorter(file: &Value, place: &str) -> Value {
    let items = file.pointer(place).unwrap().as_array().unwrap();
    items[..items.len() - 1].into()
}

/// Asserts that no part of a text that ends early is read.
#[track_caller]
pub fn cut_short(text: &str, refused: impl Fn(&str) -> bool) {
    for end in (0..text.len()).step_by(7).chain([text.len() - 1]) {
        assert!(refused(&text[..end]), "{end} bytes of {}", text.len());
    }
}

/// Draws a place in a JSON value.
pub fn any_place<'a>(random: &mut StdRng, value: &'a mut Value) -> &'a mut Value {
    let length = match value {
        Value::Array(items) => items.len(),
        Value::Object(fields) => fields.len(),
        _ => 0,
    };
    if length == 0 || random.random_range(0..20) == 0 {
        return value;
    }
    let n = random.random_range(0..length);
    match value {
        Value::Array(items) => any_place(random, &mut items[n]),
        Value::Object(fields) => any_place(random, fields.values_mut().nth(n).unwrap()),
        leaf => leaf,
    }
}

/// Draws what a place in a file might hold, by mistake or by malice.
pub fn any_value(random: &mut StdRng, file: &Value) -> Value {
    let one = |random: &mut StdRng, list: &[Value]| list[random.random_range(0..list.len())].clone();
    match random.random_range(0..8) {
        0 => one(random, &[0.0, 1.0, -1.0, 1e-300, 1e300, 2.0, 1e18].map(Value::from)),
        1 => one(random, &[0, 1, 2, 64, 80, 255, 1 << 31, u64::from(u32::MAX), u64::MAX].map(Value::from)),
        2 => {
            let words = ["", "K", "2/64", "16", "8/128", "2/0", "0/0", "4294967295/4294967295", "rtn", "hadamard", "rotate-kv", "f16", "f8"];
            one(random, &words.map(Value::from))
        }
        3 => one(random, &[Value::Null, json!([]), json!({}), json!(true)]),
        4 => any_place(random, &mut file.clone()).clone(),
        _ => json!(random.random_range(0..10)),
    }
}

/// Returns a file's text with one to three bytes that are others.
pub fn any_bytes(random: &mut StdRng, file: &Value) -> String {
    let mut bytes = file.to_string().into_bytes();
    for _ in 0..random.random_range(1..=3) {
        let at = random.random_range(0..bytes.len());
        let meant = b"0123456789-.e\"[]{},:KV/ "[random.random_range(0..24)];
        bytes[at] = if random.random() { bytes[at] ^ 1 << random.random_range(0..8) } else { meant };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Returns a file's text with another number, word or piece of the file in one place.
pub fn any_change(random: &mut StdRng, file: &Value) -> String {
    let mut changed = file.clone();
    let value = any_value(random, file);
    *any_place(random, &mut changed) = value;
    changed.to_string()
}
