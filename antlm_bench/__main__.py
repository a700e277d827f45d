"""`python -m antlm_bench` is the same command as `antlm-bench`."""

from antlm_bench.cli.process import prepare_process


def main() -> None:
    """Run the command line of this process, and exit."""
    prepare_process()  # before the imports of the command line
    from antlm_bench.cli import app

    app.main()


if __name__ == "__main__":
    main()
