"""Go templates of --format."""

from __future__ import annotations

from typing import Any

import pytest

from wherry.api import Invalid
from wherry_plugins.frontend.cli.template import method, render

ROW: dict[str, Any] = {
    "Names": "web",
    "Size": 3,
    "On": True,
    "Off": False,
    "Tags": ["a", "b"],
    "None": None,
    "Labels": {"b.c": "2", "a": "1"},
    "State": {"Pid": 7, "Status": "running"},
    "Mounts": [{"Dst": "/x"}, {"Dst": "/y"}],
    "Label": method(lambda name: {"tier": "db"}.get(name, "")),
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain", "plain"),
        ("{{.Names}}", "web"),
        ("{{ .Names }}-{{.State.Pid}}", "web-7"),
        ("{{.}}", None),
        ("{{json .State}}", '{"Pid":7,"Status":"running"}'),
        ("{{.State | json}}", '{"Pid":7,"Status":"running"}'),
        ("{{json .Names}}", '"web"'),
        ("{{.Tags}} {{.Labels}}", "[a b] map[a:1 b.c:2]"),
        ("{{.None}}", "<no value>"),
        ('{{join .Tags ","}}', "a,b"),
        ('{{index .Labels "b.c"}}', "2"),
        ('{{index .Labels "none"}}', ""),
        ("{{index .Tags 1}}", "b"),
        ("{{(index .Mounts 1).Dst}}", "/y"),
        ('{{.Label "tier"}}', "db"),
        ('{{.Label "x"}}', ""),
        ("{{upper .Names}}{{lower `ABC`}}{{title .Names}}", "WEBabcWeb"),
        ('{{printf "%-5s|%03d|%q" .Names .Size .Names}}', 'web  |003|"web"'),
        ("{{len .Tags}}", "2"),
        ("{{if .On}}yes{{else}}no{{end}}", "yes"),
        ("{{if .Off}}yes{{else if .On}}second{{else}}no{{end}}", "second"),
        ("{{if not .Off}}x{{end}}", "x"),
        ('{{if and .On (eq .Names "web")}}x{{end}}', "x"),
        ("{{if or .Off .None}}x{{else}}y{{end}}", "y"),
        ('{{if eq .Names "a" "web"}}x{{end}}', "x"),
        ("{{if gt .Size 2}}x{{end}}", "x"),
        ("{{range .Tags}}<{{.}}>{{end}}", "<a><b>"),
        ("{{range $i, $tag := .Tags}}{{$i}}={{$tag}};{{end}}", "0=a;1=b;"),
        ("{{range $key, $value := .Labels}}{{$key}}={{$value}} {{end}}", "a=1 b.c=2 "),
        ("{{range .Mounts}}{{.Dst}} {{$.Names}} {{end}}", "/x web /y web "),
        ("{{range .None}}x{{else}}none{{end}}", "none"),
        ("{{with .State}}{{.Pid}}{{end}}", "7"),
        ("{{with .None}}x{{else}}{{.Names}}{{end}}", "web"),
        ("{{$x := .Names}}{{$x}}{{$x}}", "webweb"),
        ("a {{- .Names -}} b", "awebb"),
        ("{{/* nothing */}}x", "x"),
        ('{{"a\\tb"}}', "a\tb"),
        ('{{println "a" 1}}', "a 1\n"),
        ("{{slice .Names 1}} {{slice .Names 0 2}}", "eb we"),
        ('{{range split "a:b" ":"}}{{.}} {{end}}', "a b "),
        ("{{truncate .Names 2}}{{pad .Names 1 2}}", "we web  "),
        ("{{true}} {{3}} {{1.5}}", "true 3 1.5"),
    ],
)
def test_renders_as_go_does(template: str, text: str | None) -> None:
    rendered = render(template, ROW)
    assert text is None or rendered == text


@pytest.mark.parametrize(
    ("template", "cause"),
    [
        ("{{.Name}}", 'no field "Name" (did you mean "Names"?)'),
        ("{{.Names.First}}", 'no field "First" in "web"'),
        ("{{.Names", 'unclosed "{{"'),
        ("{{if .On}}x", "{{if}} has no {{end}}"),
        ("{{end}}", "unexpected {{end}}"),
        ("{{jsno .}}", 'no function "jsno" (did you mean "json"'),
        ("{{}}", "an empty action"),
        ("{{$x}}", 'undefined variable "$x"'),
        ("{{range .Names}}{{end}}", "range can't iterate"),
        ("{{index .Tags 9}}", "index:"),
        ("{{(.Names}}", 'unclosed "("'),
        ('{{.Names "x"}}', "takes no argument"),
        ("{{.On ~}}", 'unexpected "~"'),
        ("{{if .On}}{{else with .Off}}{{end}}", 'unexpected "else with .Off"'),
    ],
)
def test_says_what_is_wrong(template: str, cause: str) -> None:
    with pytest.raises(Invalid) as caught:
        render(template, ROW)
    assert cause in str(caught.value)
    assert str(caught.value).startswith(f'template "{template}": ')
