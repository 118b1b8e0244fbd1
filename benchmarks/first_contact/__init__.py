"""The first minutes on a CUDA card: one command that asks it everything, prepared without one, in a fixed time.

    python -m benchmarks.first_contact --out FOLDER [--seconds 500] [--stages smoke headline ...] [--device cuda]

From a checkout, with its root on PYTHONPATH; nothing is installed. Stages, in this order (`stages.py`):

    about       the card as nvidia-smi sees it, versions, what can be imported
    smoke       every kernel of every backend once on few rows, each in a process of its own: its largest error
    tests       the tests that use CUDA, side by side: failing ids, each with what it held against what
    ceilings    what the card copies, reads and multiplies
    headline    passes of 10 million rows, of each backend: ms, shares of both floors, beside the prediction
    sums        over all rows against torch in float64, and sum_k sx against sum_n y, for each FLUSH
    ablations   passes with other FLUSH, tile, columns and warps than the formula's
    ncu         the hardware's counters during the kernels of a pass, where there is Nsight Compute
    profile     five passes of a fit: launches and kernels of one, and the share of the time in which the card waits
    hosts       rows from the host, images through VGG to conv1_2, and decoding: rates

Every result is a line of FOLDER/results.jsonl as soon as it is there, so a run that is killed keeps what it found; the
end of what processes said is in FOLDER/output.log. A stage has its share of the time that is left when it begins, and
what one does not use goes to the next; its jobs are processes of their own, which a crash, a hang or a flood of output
cannot take beyond their time. The last that is printed is a table: predicted, measured, ratio. `predictions.py` has
the predictions, made without a card, and how. Exit status 0 where the run came to its end, whatever it found.

Before it, everything but the card's answers can be tried: `--device cpu --rows 2000` runs each stage, with what a CPU
lacks left out and the reason recorded. After it: mend, run the stages that matter again, and make the record with
`python -m benchmarks.run --suite gpu`. The card's clocks and limits are left as they are found.
"""
