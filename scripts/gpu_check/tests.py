"""gpu-check without a GPU: `python3 scripts/gpu_check/tests.py`. Stand-ins take the programs' places, and faults are planted in what they say."""

import contextlib
import doctest
import io
import json
import os
import runpy
import sys
import tempfile
import time
import unittest
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "bench_peers")]

import losses
import parts
import report
import running

# Says what ctscribe, on_cuda and attention_times say; FAULT changes one thing.
STAND_IN = f'#!{sys.executable}' + '''
import json, os, pathlib, sys, time
name, words, fault = pathlib.Path(sys.argv[0]).name, sys.argv[1:], os.environ.get("FAULT", "")
value = lambda option: words[words.index(option) + 1]
if name == "on_cuda":
    if fault == "no device":
        print("no CUDA device, nothing was compared: libcuda", file=sys.stderr)
    if fault == "operation":
        print("rope BF16, output 0: off by 3 of 1")
        sys.exit(101)
    print("test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s")
elif name == "device_tests":
    if fault == "no device":
        print("nothing was compared: no CUDA device", file=sys.stderr)
    if fault == "stage":
        print("thread 'gradients' panicked at tests/device/main.rs:1:2:\\nstage 1: the gradient of projector.weight is 0.3 apart", file=sys.stderr)
        print("test gradients ... FAILED")
        sys.exit(101)
    time.sleep(60 if fault == "slow stages" else 0)
    print("test result: ok. 4 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.00s")
elif name == "attention_times":
    for shape in words[3:]:
        print(json.dumps({"shape": shape, "forward_ms": 1.0, "both_ms": 4.0}), flush=True)
        time.sleep(60 if fault == "slow attention" else 0)
elif "--help" in words:
    print("" if fault == "old" else "--device <cpu|cuda:N>")
elif words[0] == "phantom":
    os.makedirs(value("--out"))
elif words[0] == "bench":
    if fault == "memory" and "--recompute" not in words:
        sys.exit("error: out of memory")
    if fault == "bench":
        sys.exit("error: an illegal memory access was encountered")
    if fault == "graphs" and "--no-graphs" not in words:
        print("passes are not replayed as CUDA graphs: 3 of 32000 values differ", file=sys.stderr)
    print(json.dumps({"bench": words[1], "median_s": 0.75 if "--no-graphs" in words else 0.5, "items_per_s": 1000.0, "peak_mib": 100}))
else:
    on_device = value("--device") != "cpu"
    for stage in ("language", "structure", "llama", "bert"):
        folder = pathlib.Path(value("--out")) / "run" / stage
        folder.mkdir(parents=True)
        lines = [{"step": step, "loss": 4.0 / step} for step in range(1, 9)] + [{"step": 8, "validation_loss": 0.6}]
        if on_device and stage == os.environ.get("STAGE", "structure"):
            if fault == "first loss":
                lines[0]["loss"] *= 1.0002
            if fault == "rounding":
                lines[0]["loss"] *= 1.00005
                lines[6]["loss"] *= 1.01
            if fault == "later losses":
                lines[4:8] = [line | {"loss": 1.012 * line["loss"]} for line in lines[4:8]]
            if fault == "validation":
                lines[8]["validation_loss"] = 0.607
            if fault == "no number":
                lines[7]["loss"] = float("nan")
            if fault == "missing step":
                del lines[3]
            if fault == "no steps":
                lines = []
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\\n" for line in lines))
    time.sleep(60 if fault == "slow demo" else 0)
    sys.exit("error: illegal memory access" if fault == "demo" and on_device else 0)
'''


class Checked:
    """What one run of gpu-check on stand-ins left."""

    def __init__(self, *options, fault="", **environment):
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            programs = {name: folder / name for name in ("ctscribe", "on_cuda", "device_tests", "attention_times")}
            for path in programs.values():
                path.write_text(STAND_IN)
                path.chmod(0o755)
            named = [word for name, path in programs.items() for word in (f"--{name.replace('_', '-')}", str(path))]
            # a Python without torch: the peers' rows say so
            common = ["--device", "cuda:0", "--python", "/bin/false", "--models", str(folder / "models"), "--out", str(folder / "out")]
            before = dict(os.environ)
            # no compute-sanitizer of the machine's
            os.environ.update({"FAULT": fault, "PATH": "/usr/bin:/bin", **environment})
            main = runpy.run_path(str(HERE / "__main__.py"), run_name="gpu_check")["main"]
            try:
                with contextlib.redirect_stderr(io.StringIO()) as self.said:
                    self.code = main(common + named + list(options))
            finally:
                os.environ.clear()
                os.environ.update(before)
            self.json = json.loads((folder / "out/gpu-check.json").read_text(), parse_constant=lambda name: self.fail(name))
            self.markdown = (folder / "out/gpu-check.md").read_text()
        self.parts = {record["part"]: record for record in self.json["parts"]}

    def fail(self, name):
        raise AssertionError(f"{name} is no JSON")


class GpuCheck(unittest.TestCase):
    def test_everything_that_is_at_hand_runs_and_the_rest_says_why(self):
        checked = Checked()
        self.assertEqual(checked.code, 0, checked.said.getvalue())
        results = {name: record["result"] for name, record in checked.parts.items()}
        self.assertEqual(results, {"build": "measured", "ops": "agrees", "stages": "agrees", "training": "agrees", "attention": "measured", "weights": "measured",
                                   "lora": "measured", "decode": "measured", "sanitizer": "not run"})
        self.assertEqual([checked.parts[part]["rows"][0]["tests"] for part in ("ops", "stages")], [12, 4])
        shapes = [row["batch x tokens"] for row in checked.parts["attention"]["rows"]]
        self.assertEqual(shapes, ["1x526", "4x526", "8x526", "1x2048", "4x2048", "8x2048"])
        timed = [(row["batch"], row["tokens"], row["ours s"]) for row in checked.parts["lora"]["rows"]]
        self.assertEqual(timed, [(1, 526, 0.5), (4, 526, 0.5), (8, 526, 0.5), (1, 2048, 0.5)])
        self.assertEqual([row["ratio"] for row in checked.parts["decode"]["rows"]], [1.5])
        self.assertIn("PyTorch: exit status 1", checked.markdown)
        self.assertIn("| structure | step 1 | 4 | 4 | 0 | 0.0001 | yes |", checked.markdown)

    def test_a_wrong_loss_fails_it(self):
        for fault, words in {"first loss": "structure, step 1", "later losses": "mean of steps 5 to 8", "validation": "validation: 0.607",
                             "no number": "nan on the device", "missing step": "steps: 7 on the device", "no steps": "steps: 0 on the device"}.items():
            with self.subTest(fault):
                checked = Checked("--part", "training", fault=fault)
                self.assertEqual((checked.code, checked.parts["training"]["result"]), (1, "failed"))
                self.assertIn(words, checked.parts["training"]["why"])
                self.assertIn("failed: training", checked.said.getvalue())

    def test_what_rounding_may_do_agrees_but_less_of_it_at_the_first_step_of_equal_weights(self):
        self.assertEqual(Checked("--part", "training", fault="rounding").code, 0)
        self.assertEqual(Checked("--part", "training", fault="first loss", STAGE="bert").code, 0)

    def test_a_wrong_operation_fails_it_and_the_rest_goes_on(self):
        checked = Checked(fault="operation")
        self.assertEqual((checked.code, checked.parts["training"]["result"]), (1, "agrees"))
        self.assertIn("off by 3 of 1", checked.parts["ops"]["why"])

    def test_a_wrong_gradient_of_a_stage_fails_it_and_the_rest_goes_on(self):
        checked = Checked(fault="stage")
        self.assertEqual((checked.code, checked.parts["ops"]["result"], checked.parts["training"]["result"]), (1, "agrees", "agrees"))
        self.assertEqual(checked.parts["stages"]["why"], "stage 1: the gradient of projector.weight is 0.3 apart; test gradients ... FAILED")

    def test_stages_end_with_their_seconds(self):
        start = time.monotonic()
        checked = Checked("--seconds", "stages=1", "--part", "stages", "--part", "ops", fault="slow stages")
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual((checked.code, checked.parts["stages"]["result"]), (0, "not run"))
        self.assertIn("out of time after 1 s", checked.parts["stages"]["why"])

    def test_on_the_cpu_what_compares_it_with_a_device_is_passed_over_with_a_word(self):
        checked = Checked("--device", "cpu", "--part", "ops", "--part", "stages", "--part", "sanitizer")
        self.assertEqual(checked.code, 2)
        for part, program in (("ops", "on_cuda"), ("stages", "device"), ("sanitizer", "on_cuda")):
            record = checked.parts[part]
            self.assertEqual((record["result"], record["why"]), ("not run", f"{program} compares a CUDA device with the CPU: there is one device here"))

    def test_a_program_of_ours_that_breaks_fails_it(self):
        for part, fault, words in (("training", "demo", "illegal memory access"), ("lora", "bench", "an illegal memory access"),
                                   ("decode", "bench", "an illegal memory access"), ("decode", "graphs", "3 of 32000 values differ")):
            checked = Checked("--part", "weights", "--part", part, fault=fault)
            self.assertEqual(checked.code, 1)
            self.assertIn(words, checked.parts[part]["why"])

    def test_without_a_device_or_the_option_for_it_nothing_is_compared(self):
        for part in ("ops", "stages"):
            checked = Checked("--part", part, fault="no device")
            self.assertEqual((checked.code, checked.parts[part]["why"]), (2, "the driver gave no device; nothing was compared"))
        checked = Checked("--part", "training", "--part", "weights", "--part", "lora", fault="old")
        self.assertEqual(checked.code, 2)
        for part in ("training", "lora"):
            self.assertIn("does not know `", checked.parts[part]["why"])

    def test_a_part_ends_with_its_seconds_and_the_others_go_on(self):
        start = time.monotonic()
        checked = Checked("--seconds", "training=1", "--part", "training", "--part", "ops", fault="slow demo")
        self.assertLess(time.monotonic() - start, 20)
        self.assertEqual((checked.code, checked.parts["ops"]["result"], checked.parts["training"]["result"]), (0, "agrees", "not run"))
        self.assertIn("out of time after 1 s", checked.parts["training"]["why"])

    def test_what_was_measured_before_the_seconds_were_over_is_told(self):
        checked = Checked("--seconds", "attention=4", "--part", "attention", fault="slow attention")
        rows = checked.parts["attention"]["rows"]
        self.assertEqual((rows[0]["ours forward + backward ms"], rows[1]["ours forward + backward ms"]), (4.0, None))
        self.assertIn("out of time", checked.parts["attention"]["notes"][-1])

    def test_nothing_is_begun_when_the_whole_budget_is_spent(self):
        checked = Checked("--budget", "0")
        self.assertEqual((checked.code, {record["result"] for record in checked.parts.values()}), (2, {"not run"}))
        self.assertIn("run it alone: --part lora", checked.parts["lora"]["why"])

    def test_a_shape_too_large_for_the_memory_runs_its_layers_again_on_both_sides(self):
        checked = Checked("--part", "weights", "--part", "lora", fault="memory")
        self.assertTrue(all(row["recomputing"] and row["ours s"] == 0.5 for row in checked.parts["lora"]["rows"]))

    def test_a_part_that_compares_nothing_is_not_asked_to(self):
        for part in ("build", "attention", "weights"):
            self.assertEqual(Checked("--part", part).code, 0, part)

    def test_a_device_that_cannot_be_is_refused(self):
        with self.assertRaises(SystemExit) as refused:
            Checked("--device", "gpu")
        self.assertEqual(refused.exception.code, 2)

    def test_documented_examples(self):
        for module in (losses, parts, report, running):
            self.assertEqual(doctest.testmod(module).failed, 0, module.__name__)


if __name__ == "__main__":
    unittest.main()
