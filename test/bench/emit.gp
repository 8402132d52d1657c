# The plot of test/bench/emit: reads plain.dat, slow.dat and bulk.dat in the
# directory "area", writes "target".
#
#	plain, slow		a block for each contender: its title, then a line for each
#					number of clients: median, lowest and highest tps
#	bulk			a line for each contender: title, median, lowest and highest rows/s

set terminal svg size 1400,480 font 'sans-serif,13' background '#ffffff'
set output target
set multiplot layout 1,3
set style fill solid 0.8 border -1
set grid ytics lc rgb '#dddddd'
set border 3
set tics nomirror
set xtics scale 0
set bmargin 4
set yrange [0:*]
set offsets 0, 0, graph 0.3, 0
set key top left reverse Left
set linetype 1 lc rgb '#a0a0a0'
set linetype 2 lc rgb '#e0a050'
set linetype 3 lc rgb '#4878a8'
set linetype 4 lc rgb '#283858'
set linetype 5 lc rgb '#70a070'
set linetype 6 lc rgb '#d0d0d0'
set style data histograms
set style histogram errorbars gap 1 lw 1

set xlabel 'clients'
set ylabel 'transactions/s: median, lowest and highest round'
set title 'Single-row INSERTs, '.plain
plot for [i=0:contenders - 1] area.'/plain.dat' index i using 2:3:4:xtic(1) title columnheader(1)
set title 'Single-row INSERTs, '.slow
plot for [i=0:contenders - 1] area.'/slow.dat' index i using 2:3:4:xtic(1) title columnheader(1)

unset xlabel
set ylabel 'rows/s'
set title 'One INSERT of '.rows.' rows'
plot area.'/bulk.dat' using 2:3:4:xtic(1) notitle
unset multiplot
