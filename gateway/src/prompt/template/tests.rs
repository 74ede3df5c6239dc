//! What templates may ask for, and what they may not cost.

use super::*;
use serde_json::json;

fn compile(source: &str) -> Result<ChatTemplate, TemplateError> {
    let now = jiff::civil::date(2026, 10, 1).at(12, 34, 56, 0);
    let special = SpecialTexts { bos: "<s>".into(), eos: "</s>".into() };
    ChatTemplate::compile(source, special, Clock::Fixed(now))
}

fn render(source: &str) -> Result<String, TemplateError> {
    let messages =
        [json!({"role": "user", "content": "Hé <b>"}), json!({"role": "assistant", "content": null})];
    let variables = Map::from_iter([("x".to_owned(), json!({"b": [1, 2.0, 1e-7, 1e22], "a": {"k": true}}))]);
    compile(source)?.render(&RenderInput {
        messages: &messages,
        tools: None,
        add_generation_prompt: true,
        variables: &variables,
    })
}

fn check(source: &str, expected: &str) {
    assert_eq!(render(source).unwrap(), expected, "{source}");
}

#[test]
fn tojson_writes_what_python_writes() {
    check("{{ x | tojson }}", r#"{"b": [1, 2.0, 1e-07, 1e+22], "a": {"k": true}}"#);
    check(
        "{{ x | tojson(separators=(',', ':'), sort_keys=true) }}",
        r#"{"a":{"k":true},"b":[1,2.0,1e-07,1e+22]}"#,
    );
    check("{{ x.a | tojson(indent=2) }}", "{\n  \"k\": true\n}");
    check("{{ [[], {}] | tojson(indent=1) }}", "[\n [],\n {}\n]");
    check("{{ messages[0].content | tojson(ensure_ascii=False) }}", "\"Hé <b>\"");
    check("{{ '\\x01\\t\"' | tojson }}", r#""\u0001\t\"""#);
    assert!(render("{{ missing | tojson }}").is_err());
    assert!(render("{{ x | tojson(nonsense=1) }}").is_err());
}

#[test]
fn pythons_ways_work() {
    check("{{ 'a</think>b'.split('</think>')[-1].lstrip('\\n') }}", "b");
    check(
        "{{ 'a.b.c'.rsplit('.', 1)[0] }} {{ 'k=v=w'.partition('=')[2] }} {{ 'k=v=w'.rpartition('=')[0] }}",
        "a.b v=w k=v",
    );
    check("{{ 'prefix-x'.removeprefix('prefix-') }}{{ 'x.gz'.removesuffix('.gz') }}", "xx");
    check(
        "{{ messages[::-1][0].role }} {{ x.items() | list | length }} {{ x.get('none', 'd') }}",
        "assistant 2 d",
    );
    check(
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}",
        "2",
    );
    check("{{ x is mapping }} {{ messages is iterable }} {{ none }} {{ x.a }}", "True True None {'k': True}");
    check(
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% elif i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}",
        "02",
    );
    check("{{ bos_token }}{{ strftime_now('%d %b %Y') }}{{ eos_token }}", "<s>01 Oct 2026</s>");
    check("  {% if true %}\nx\n  {% endif %}\n", "x\n");
    check("{{ '<a&b>' }}", "<a&b>");
}

#[test]
fn generation_blocks_are_transparent() {
    check("{% generation %}\na{%- endgeneration -%} b", "ab");
    check("{# {% generation %} #}{% raw %}{% generation %}{% endraw %}", "{% generation %}");
    check("{% if add_generation_prompt %}g{% endif %}", "g");
}

#[test]
fn chatml_stands_in_for_a_missing_template() {
    check(
        CHATML,
        "<|im_start|>user\nHé <b><|im_end|>\n<|im_start|>assistant\n<|im_end|>\n<|im_start|>assistant\n",
    );
}

#[test]
fn the_templates_own_refusal_keeps_its_words() {
    match render("{{ raise_exception('roles must alternate') }}") {
        Err(TemplateError::Raised { message }) => assert_eq!(message, "roles must alternate"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn hostile_templates_give_errors() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(5000), ")".repeat(5000));
    let hostile: &[&str] = &[
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(9999) %}{{ 'x' * 99999 }}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s|tojson }}",
        "{% set ns = namespace(s=[1]) %}{% for i in range(500) %}{% set ns.s = [ns.s] %}{% endfor %}{{ ns.s|tojson }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{{ 'x' * 99999999999 }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ strftime_now('%') }}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
        "{{ missing.attribute }}",
        "{{ 1 // 0 }}",
        "{% for %}",
        "{{",
        &deep,
    ];
    for source in hostile {
        let started = std::time::Instant::now();
        assert!(render(source).is_err(), "{}", &source[..source.len().min(100)]);
        assert!(
            started.elapsed().as_secs() < 20,
            "{} took {:?}",
            &source[..source.len().min(100)],
            started.elapsed()
        );
    }
    assert!(matches!(compile(&" ".repeat(SOURCE_BYTES_MAX + 1)), Err(TemplateError::SourceTooLong { .. })));
}
