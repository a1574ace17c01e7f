import sys
sys.path.insert(0,"/work/main/tests")
from test_fake_cupy import *
@pytest.mark.parametrize("amp",["fp16","bf16"])
def test_amp(xp, tiny_folder, tmp_path, capsys, amp):
    assert run_command(train.main, ["--data", str(tiny_folder), "--output-dir", str(tmp_path / "run"), "--epochs", "2","--device", "cuda", "--image-size", "32", "48", "--batch-size", "4", "--num-workers","0","--amp",amp]) == 0, capsys.readouterr()
    assert fake_cuda.gpu.log == []
