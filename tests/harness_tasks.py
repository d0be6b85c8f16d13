"""Tasks for lm-evaluation-harness, as people write them: YAML beside a file of questions."""

WRITTEN = """\
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: test.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{question}}"
doc_to_target: "{{answer}}"
num_fewshot: 0
generation_kwargs: {do_sample: false, max_gen_toks: 30, until: ["\\n\\n\\n"]}
filter_list:
  - name: last-number
    filter:
      - {function: regex, regex_pattern: "(-?\\\\d+)", group_select: -1}
      - {function: take_first}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
