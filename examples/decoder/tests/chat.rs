//! Chat templates: the texts that the models' own write, and that none of ill will hangs or eats
//! memory. No GPU.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::time::{Duration, Instant};

use wgkv_decoder::{ChatTemplate, Error, Message};

/// No template may take longer, on however slow a machine.
const PATIENCE: Duration = Duration::from_secs(20);

const TALK: [Message<'static>; 4] = [
    Message { role: "system", content: "Be brief." },
    Message { role: "user", content: " 1 < 2 & \"so\"? " },
    Message { role: "assistant", content: "Yes." },
    Message { role: "user", content: "Why?" },
];

fn render(source: &str, messages: &[Message<'_>]) -> String {
    ChatTemplate::new(source).unwrap().render(messages, true, "<s>", "</s>").unwrap()
}

#[test]
fn templates_in_use_write_what_they_should() {
    // SmolLM2's.
    let chatml = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are a helpful AI assistant named \
                  SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}\
                  {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let wanted = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n 1 < 2 & \"so\"? <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n\
                  <|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n";
    assert_eq!(render(chatml, &TALK), wanted);
    assert!(render(chatml, &TALK[1..]).starts_with("<|im_start|>system\nYou are a helpful"));
    let without = ChatTemplate::new(chatml).unwrap().render(&TALK, false, "", "").unwrap();
    assert_eq!(without, wanted.strip_suffix("<|im_start|>assistant\n").unwrap());
    // Of Llama 2's kind: the system's words within the first question, methods of Python's, a
    // refusal.
    let llama2 = "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}\
                  {% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% for message in loop_messages %}\
                  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}\
                  {% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}\
                  {% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}\
                  {% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}";
    let wanted = "<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n 1 < 2 & \"so\"? [/INST] Yes. </s><s>[INST] Why? [/INST]";
    assert_eq!(render(llama2, &TALK), wanted);
    let error = ChatTemplate::new(llama2).unwrap().render(&TALK[2..], true, "", "").unwrap_err();
    assert!(matches!(&error, Error::Template(said) if said.contains("Conversation roles must alternate")), "{error}");
    // Of Qwen 3's kind: lines of their own for the tags, a namespace, backwards, a test for what is
    // not there.
    let qwen3 = "{%- if tools %}\n    {{- '# Tools' }}\n{%- endif %}\n{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}\n\
                 {%- for message in messages[::-1] %}\n    {%- set index = (messages|length - 1) - loop.index0 %}\n    \
                 {%- if ns.multi_step_tool and message.role == \"user\" and message.content is string and not(message.content.startswith('<tool_response>')) %}\n        \
                 {%- set ns.multi_step_tool = false %}\n        {%- set ns.last_query_index = index %}\n    {%- endif %}\n{%- endfor %}\n\
                 {%- for message in messages %}\n    {{- '<|im_start|>' + message.role + '\\n' + message.content.split('</think>')[-1].lstrip('\\n') + '<|im_end|>\\n' }}\n\
                 {%- endfor %}\n{{- ns.last_query_index }}\n{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}\n    \
                 {%- if enable_thinking is defined and enable_thinking is false %}\n        {{- '<think>\\n\\n</think>\\n\\n' }}\n    {%- endif %}\n{%- endif %}";
    let thinking = [TALK[1], Message { role: "assistant", content: "<think>hm</think>\n\nYes." }, TALK[3]];
    let wanted =
        "<|im_start|>user\n 1 < 2 & \"so\"? <|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n2<|im_start|>assistant\n";
    assert_eq!(render(qwen3, &thinking), wanted);
    assert_eq!(render("{% if strftime_now is defined %}{{ strftime_now('%Y') | length }}{% endif %}", &[]), "4");
    // Tags that mark what is trained on, blocks on lines of their own, and a last line break that
    // is not the text's.
    let marked = "{% for message in messages %}\n  {%- if message.role == 'assistant' %}\n    {% generation %}\n{{ message.content }}|\n    {%- endgeneration -%}\n  \
                  {% elif loop.last %}{% break %}{% endif %}\n{% endfor %}\n.\n";
    assert_eq!(render(marked, &TALK), "Yes.|.");
}

#[test]
fn what_is_no_template_is_refused_with_its_place() {
    for source in ["{% for %}", "a\n{{ messages[", "{% generation %}", "{% if x %}", "{% endif %}", "{% macro"] {
        let error = ChatTemplate::new(source).err();
        assert!(matches!(&error, Some(Error::Template(said)) if said.contains("line")), "{source}: {error:?}");
    }
    assert!(matches!(ChatTemplate::new(&" ".repeat(2 << 20)).err().unwrap(), Error::Template(said) if said.contains("262144")));
    // Found out only in rendering.
    for source in
        ["{{ nothing.at.all }}", "{{ messages | no_such_filter }}", "{{ no_such_function() }}", "{{ 1 / 0 }}", "{% include 'chat' %}{% extends 'x' %}"]
    {
        match ChatTemplate::new(source) {
            Ok(template) => assert!(matches!(template.render(&TALK, true, "", "").unwrap_err(), Error::Template(_)), "{source}"),
            Err(error) => assert!(matches!(error, Error::Template(_)), "{source}: {error}"),
        }
    }
}

#[test]
fn a_template_of_ill_will_neither_hangs_nor_eats_memory() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(100_000), ")".repeat(100_000));
    let blocks = "{% if true %}".repeat(20_000);
    let long = "{% set ns = namespace(x='aaaaaaaa') %}{% for a in range(10000) %}";
    let hostile = [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}".to_owned(),
        "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}".to_owned(),
        "{{ 'x' * 99999999999 }}".to_owned(),
        "{{ ['x'] * 99999999 }}".to_owned(),
        "{{ ('x' * 1000000) * 1000000 }}".to_owned(),
        format!("{long}{{% set ns.x = ns.x ~ ns.x %}}{{% endfor %}}"),
        format!("{long}{{% set ns.x = ns.x + ns.x %}}{{% endfor %}}"),
        format!("{long}{{% set ns.x = ns.x.replace('a', 'aaaaaaaa') %}}{{% endfor %}}"),
        format!("{long}{{% set ns.x = ns.x | replace('a', 'aaaaaaaa') %}}{{% endfor %}}"),
        format!("{long}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x }}}}"),
        format!("{long}{{% set ns.x = [ns.x] %}}{{% endfor %}}{{{{ ns.x }}}}"),
        format!("{long}{{% set ns.x = [ns.x] %}}{{% endfor %}}"),
        format!("{long}{{% set ns.x = {{'a': ns.x}} %}}{{% endfor %}}{{{{ ns.x == ns.x }}}}"),
        format!("{long}{{% set ns.x = [ns.x, ns.x] %}}{{% endfor %}}{{{{ ns.x | tojson }}}}"),
        format!("{long}{{% set ns.x = ns.x.join([ns.x, ns.x, ns.x]) %}}{{% endfor %}}"),
        "{% set x %}{% for a in range(99999) %}{% for b in range(99999) %}xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx{% endfor %}{% endfor %}{% endset %}"
            .to_owned(),
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}".to_owned(),
        "{% for a in [1] recursive %}{{ loop([1]) }}{{ loop([1]) }}{% endfor %}".to_owned(),
        "{{ range(99999) | map('string') | list | join('x') | length }}{{ 'x' | center(999999999) }}".to_owned(),
        "{{ 'x'.center(999999999) }}{{ 'x'.ljust(999999999) }}{{ 'x'.zfill(999999999) }}".to_owned(),
        "{{ '%999999999d' | format(1) }}".to_owned(),
        "{{ 'x' | indent(999999999) }}{{ 'a\nb' | indent(999999999) }}".to_owned(),
        format!("{long}{{% set ns.x = ns.x | reverse %}}{{% endfor %}}{{{{ ns.x | join }}}}"),
        format!("{long}{{% set ns.x = ns.x[0:] %}}{{% endfor %}}{{{{ ns.x }}}}"),
        String::from("{% set ns = namespace(x=['a']) %}{% for a in range(10000) %}{% set ns.x = ns.x[0:] %}{% endfor %}{{ ns.x | join }}"),
        String::from("{% set ns = namespace(x=['a']) %}{% for a in range(10000) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x ~ '' }}"),
        String::from(
            "{% set ns = namespace(x=['a'], y=['a']) %}{% for a in range(40) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
        ),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}{{ ns ~ '' }}{{ ns == ns }}{{ ns | string }}{{ [ns] }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns | string }}".to_owned(),
        "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns.items() }}".to_owned(),
        "{% set ns = namespace() %}{% for a in range(9999) %}{% set n = namespace() %}{% set n.x = ns.x %}{% set ns.x = n %}{% endfor %}".to_owned(),
        "{% set ns = namespace() %}{% for a in range(9999) %}{% set p = ns.m %}{% macro m() %}{{ p }}{% endmacro %}{% set ns.m = m %}{% endfor %}".to_owned(),
        "{% set a = [1] * 99999999 %}{{ a ~ '' }}".to_owned(),
        "{{ [[1] * 9999] * 9999 | join }}".to_owned(),
        "{% set x = range(99999) | list %}{{ x | map('string') | join('x') | length }}".to_owned(),
        "{{ 10 ** 99999999 }}".to_owned(),
        "{{ messages[::-1][99999999999] }}".to_owned(),
        deep,
        blocks,
        "{% set a = 1 %}".repeat(16_000),
        format!("{{{{ {}1 }}}}", "-".repeat(200_000)),
        format!("{{{{ {}1 }}}}", "not ".repeat(60_000)),
        format!("{{{{ 1{} }}}}", " if 1".repeat(50_000)),
        format!("{{{{ 1{} }}}}", "+1".repeat(100_000)),
        format!("{{{{ a{} }}}}", ".a".repeat(100_000)),
        format!("{{{{ a{} }}}}", "|a".repeat(100_000)),
        // As long as one tag may be.
        format!("{{{{ {}1 }}}}", "-".repeat(990)),
        format!("{{{{ {}1 }}}}", "not ".repeat(990)),
        format!("{{{{ 1{} }}}}", "+a".repeat(490)),
        format!("{{{{ 1{} }}}}", " if 1".repeat(490)),
        format!("{{{{ messages{} }}}}", "|list".repeat(490)),
        format!("{{{{ {}{} }}}}", "[".repeat(490), "]".repeat(490)),
        "{% if true %}".repeat(400) + &"{% endif %}".repeat(400),
        "{%".repeat(120_000),
        "{% generation".repeat(20_000),
        "{% generation %}".repeat(16_000),
        "{#".repeat(130_000),
    ];
    for source in hostile {
        let start = Instant::now();
        let template = ChatTemplate::new(&source);
        println!("{:?} {:.70}: {:?}", start.elapsed(), source, template.as_ref().err());
        if let Ok(template) = template {
            let text = template.render(&TALK, true, "<s>", "</s>");
            println!("{:?} {:.70}: {:?}", start.elapsed(), source, text.as_ref().map(String::len));
            if let Ok(text) = text {
                assert!(text.len() < 8 << 20, "{} bytes of {:.80}", text.len(), source);
            }
        }
        assert!(start.elapsed() < PATIENCE, "{:?} for {:.80}", start.elapsed(), source);
    }
}

#[test]
fn a_long_talk_is_not_taken_for_ill_will() {
    let source = "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' and m.content.strip() %}{% set ns.last = loop.index0 %}{% endif %}\
                  {{ '<|' + m.role + '|>' + m.content.split('</think>')[-1].lstrip('\\n') | trim + eos_token }}{% endfor %}";
    let content = "All work and no play makes Jack a dull boy. ".repeat(2000);
    let messages: Vec<Message<'_>> = (0..200).map(|turn| Message { role: if turn % 2 == 0 { "user" } else { "assistant" }, content: &content }).collect();
    assert!(render(source, &messages).len() > 200 * (content.len() - 1));
    let messages: Vec<Message<'_>> = (0..2000).map(|turn| Message { role: if turn % 2 == 0 { "user" } else { "assistant" }, content: "Go on." }).collect();
    assert!(render(source, &messages).len() > 2000 * 6);
}
